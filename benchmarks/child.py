"""The script of a measured interpreter.

Start methods that import the main module again (spawn, forkserver) do so in each worker, so what
stands at the top of this file would be charged to those peers: nothing may stand here.
"""

if __name__ == "__main__":
    import sys

    import figures

    figures.main(sys.argv[1:])
