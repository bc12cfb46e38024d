"""Runs programs that nobody has read, and lets nothing of them out.

A `cell` is a warm process without threads that needs nothing but Python's standard library. For
each item it forks fresh children, locks them down and kills whatever is left of them:

    host (asyncio) --- socket ---> cell --- fork ---> candidate   locked down, runs the program
                                        `-- fork ---> tester      locked down, runs the tests

The tests travel in a memory file that the cell hands on unread, so nothing that a candidate could
search in its own memory ever held them. The tester calls the candidate over a pipe with plain data
and leaves its verdict in a memory file that no candidate ever had.

Everything in this folder but `host` runs in the cell too; the folder can be mounted as it is into
any pod with a Python, and `python3 sandbox check` runs the hostile programs of `controls` there.
"""
