"""The script of one peer's interpreter in `chaos_peers.py`: the plan's part that any pool can play.

Guarantee: it answers with one line of JSON, whatever the pool does: each call to the pool is
watched, and one that does not return ends the script with what is known by then.

Assumes `loky_chaos` on the path: the package `loky.chaos` under a name that upstream's loky does
not hide. Start methods that import the main module again do so in each worker: nothing may stand
here but functions.
"""

MARK = "CHAOS "
WORKERS = 2
# Nothing settles for so long: what is left is lost. A call to the pool takes so long: it hangs.
QUIET_SECONDS = 8.0
CALL_SECONDS = 20.0
# Calls that have to succeed when all is over.
AFTERWARDS = 20

GOOD = {
    *("quick", "sleep", "spin", "large-argument", "large-result", "large-both", "slow-to-pickle"),
    *("slow-to-load", "hold-the-gil", "leak", "thread", "fork", "fork-and-wait", "raise"),
}
# Strikes are for the last level only.
LEVELS = {
    "good": GOOD,
    "unpicklable": {
        *GOOD,
        *("bad-argument", "unloadable-argument", "bad-result", "unloadable-result"),
        *("raise-unpicklable", "raise-unloadable"),
    },
    "deaths": {*GOOD, "sys-exit", "exit", "segfault", "abort", "kill-self", "close-all"},
    "strikes": GOOD,
}


def main(arguments):
    """`PEER LEVEL SEED INDEX SCRATCH`: play, and print the answer."""
    import json
    import os

    key, level, seed, index, scratch = arguments
    game = Game(key, level, int(seed), int(index), scratch)
    try:
        answer = game.play()
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(MARK + json.dumps(answer), flush=True)
    # Threads and processes of a pool in disorder may never end; whoever started this cleans up.
    os._exit(0)


class Game:
    """One episode on one peer's pool."""

    def __init__(self, key, level, seed, index, scratch):
        import os

        from loky_chaos.marks import Marks
        from loky_chaos.strikes import Striker
        from peers import peer

        self.level = level
        self.actions = actions_of(seed, index, level)
        self.marks = Marks(os.path.join(scratch, "marks"))
        seconds = {call.number: call.seconds for _, call in self.calls()}
        self.striker = Striker(self.marks, seconds)
        self.peer = peer(key)
        self.peer.workers = WORKERS
        self.handles = []  # (call, handle)
        self.refused = 0
        self.replaced = 0
        self.hung = ""
        self._call = None  # what is being called, and since when

    def calls(self):
        """Every (moment, call) of the plan's part."""
        from loky_chaos.actions import Strike

        return [(at, call) for at, call in self.actions if not isinstance(call, Strike)]

    def play(self):
        """The answer."""
        import threading
        import time

        self.peer.load()
        threading.Thread(target=self._watch, daemon=True).start()
        self._guarded("open", self.peer.open)
        for handle in [self._guarded("submit", self.peer.submit, abs, -1) for _ in range(4)]:
            self.peer.wait(handle, CALL_SECONDS)
        begin = time.monotonic()
        for at, action in self.actions:
            self._let_pass(begin + at)
            self._do(action)
        self._let_pass(time.monotonic() + 0.5)
        settled = self._settle()
        answer = self._judge(settled)
        answer["recovered"] = self._recovers()
        if answer["recovered"]:
            self._guarded("close", self.peer.close)
        answer["hung"] = self.hung
        return answer

    # -------------------------------------------------------------- acting

    def _do(self, action):
        from loky_chaos.actions import Strike
        from loky_chaos.remains import descendants
        from loky_chaos.strikes import parent_of

        if isinstance(action, Strike):
            import os

            me = os.getpid()
            self.striker.strike(action, [p for p in descendants() if parent_of(p) == me])
            return
        try:
            self._submit(action)
        except Exception as error:
            if action.kind == "bad-argument":  # some say so at once, which is as good
                self.handles.append((action, error))
                return
            # A pool that takes no more calls: a user makes another one.
            self.replaced += 1
            self._guarded("replace", self.peer.replace)
            try:
                self._submit(action)
            except Exception:
                self.refused += 1

    def _submit(self, call):
        from loky_chaos import tasks

        given = tasks.argument(call.number, call.kind, call.seconds, call.size)
        handle = self._guarded(
            "submit",
            self.peer.submit,
            *(tasks.work, self.marks.path, call.number, call.kind, call.seconds, call.size, given),
        )
        self.handles.append((call, handle))

    def _let_pass(self, moment):
        import time

        while True:
            now = time.monotonic()
            resume = self.striker.resume(now)
            due = moment if resume is None else min(moment, resume)
            time.sleep(max(0.0, due - now))
            if due == moment and (resume is None or now >= moment):
                return

    def _guarded(self, what, function, *arguments):
        import time

        self._call = what, time.monotonic()
        try:
            return function(*arguments)
        finally:
            self._call = None

    def _watch(self):
        import json
        import os
        import time

        while True:
            time.sleep(0.2)
            call = self._call
            if call is not None and time.monotonic() - call[1] > CALL_SECONDS:
                self.hung = call[0]
                answer = self._judge({n for n, (_, h) in enumerate(self.handles) if is_done(h)})
                answer |= {"hung": self.hung, "recovered": False}
                if call[0] == "close":  # it had recovered, or nobody would have closed it
                    answer["recovered"] = True
                print(MARK + json.dumps(answer), flush=True)
                os._exit(0)

    # -------------------------------------------------------------- judging

    def _settle(self):
        """Wait until all is done, or nothing happens any more; which handles are done."""
        import time

        done, last = set(), time.monotonic()
        while len(done) < len(self.handles) and time.monotonic() - last < QUIET_SECONDS:
            self.striker.resume(time.monotonic())
            now = {n for n, (_, handle) in enumerate(self.handles) if is_done(handle)}
            if now != done:
                done, last = now, time.monotonic()
            time.sleep(0.02)
        return done

    def _judge(self, settled):
        from loky_chaos.judge import OWN_ERRORS
        from loky_chaos.marks import BEGIN
        from loky_chaos.tasks import END_CODES, digest, expected

        begun = {}
        for mark in self.marks.read():
            if mark.kind == BEGIN:
                begun.setdefault(mark.task, []).append(mark.pid)
        count = {"tasks": len(self.handles) + self.refused, "done": 0, "own": 0}
        count |= {"struck": 0, "innocent": self.refused, "lost": 0, "wrong": 0, "twice": 0}
        for number, (call, handle) in enumerate(self.handles):
            pids = begun.get(call.number, [])
            count["twice"] += len(pids) > 1
            fails = call.kind in OWN_ERRORS or call.kind in END_CODES
            excused = any(pid in self.striker.struck for pid in pids)
            if number not in settled:
                count["lost"] += 1
                continue
            try:
                value = handle if isinstance(handle, Exception) else self.peer.wait(handle, 1.0)
                if isinstance(value, Exception):
                    raise value
            except BaseException as error:
                # It may have been struck before it could leave a mark: some say where it was.
                excused = excused or getattr(error, "pid", None) in self.striker.struck
                count["own" if fails else "struck" if excused else "innocent"] += 1
                continue
            right = expected(call.number, call.kind, call.seconds, call.size)
            count["wrong" if fails or digest(value) != right else "done"] += 1
        count["replaced"] = self.replaced
        return count

    def _recovers(self):
        """Whether the pool, or another if it says that it is broken, runs new calls."""
        for attempt in range(2):
            try:
                if attempt:
                    self.replaced += 1
                    self._guarded("replace", self.peer.replace)
                handles = [
                    self._guarded("submit", self.peer.submit, abs, -n) for n in range(AFTERWARDS)
                ]
                results = [self.peer.wait(handle, CALL_SECONDS / 2) for handle in handles]
                if results == list(range(AFTERWARDS)):
                    return True
            except TimeoutError:
                return False  # it does not say that anything is wrong with it
            except Exception as error:
                if type(error).__name__ == "TimeoutError":
                    return False
        return False


def is_done(handle):
    """Whether a handle of any of the peers has an outcome."""
    if isinstance(handle, Exception):
        return True
    return bool(handle.done() if hasattr(handle, "done") else handle.ready())


def actions_of(seed, index, level):
    """The (moment, call or strike) of an episode that every pool can be asked for."""
    from loky_chaos.actions import Burst, Strike, Submit
    from loky_chaos.plan import plan

    # Those with a worker per task have hardly any tasks: take the next ones.
    episodes = (plan(seed, k, WORKERS) for k in range(1000))
    episodes = [e for e in (next(episodes) for _ in range(200)) if likely(e)]
    episode = episodes[index]
    found = []
    for actions in episode.actors.values():
        for action in actions:
            if isinstance(action, Submit) and action.call.kind in LEVELS[level]:
                found.append((action.at, action.call))
            elif isinstance(action, Burst):
                found += [(action.at, call) for call in action.calls]
            elif isinstance(action, Strike) and level == "strikes":
                found.append((action.at, action))
    return sorted(found, key=lambda pair: pair[0])


def likely(episode):
    """Whether an episode has enough tasks, and strikes, to tell pools apart."""
    strikes = len(episode.actors["striker"])
    return episode.options["max_tasks_per_child"] is None and 5 < strikes < 40


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
