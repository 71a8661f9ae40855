"""What an answer must satisfy, and what to say when it does not: one file per chapter.

    from interp_edu.checks import superposition as check
    check.interference(interference)

`core` is the machinery; `report` runs a whole notebook and tells how it went.
"""
