"""The drawn maps of the tile rooms: what each world asks of a value that a straight line does not know.

    .  free          >v<^  one-way door       s  free, tasks start here
    #  wall          k     key                g  free, tasks end here
    o  pit           1 2   locked doors

The kinds of trouble are those that value-guided planning is for: a distance to the goal that has a local
minimum (dead ends), one that is not symmetric (one-way doors), states without return (pits, a key spent on
the wrong door), and ways longer than a planner's horizon (detours). A layout number counts the variants of
these maps (`tile_rooms_layouts.variants`), so a map is never edited: new ones go to the end, or into a new
world.
"""

MAPS: dict[str, tuple[tuple[str, ...], ...]] = {
    # The control: nothing is in the way.
    "OpenRoom": (("........",) * 8,),
    # The goal is right behind the closed end of a trap.
    "DeadEnd": (
        (
            "........",
            "........",
            "..####..",
            "ssss.#gg",
            "ssss.#gg",
            "..####..",
            "........",
            "........",
        ),
        (
            "........",
            ".######.",
            "......#g",
            "sss...#g",
            "sss...#g",
            ".######.",
            "........",
            "........",
        ),
    ),
    # The near door leads into a chamber without another door, the far one to the goal.
    "OneWayDoor": (
        (
            "...#..#.",
            "ss.#..#.",
            "ss.>..#g",
            "ss.#..#g",
            "ss.#..#g",
            "...####.",
            "...>....",
            "...#....",
        ),
        (
            "ssss....",
            "ssss....",
            "#v####v#",
            "..#gg...",
            "..#gg...",
            "..#gg...",
            "..#.....",
            "..#.....",
        ),
    ),
    # The straight line leads over pits.
    "Pits": (
        (
            "........",
            "........",
            "...o....",
            "ss.oo.gg",
            "ss.oo.gg",
            "....o...",
            "........",
            "........",
        ),
        (
            "..o.....",
            "..o.....",
            "s.o..o.g",
            "s.o..o.g",
            "s.o..o.g",
            "s....o.g",
            ".....o..",
            ".....o..",
        ),
    ),
    # One key for two doors: it breaks in the first one it touches.
    "BreakingKeys": (
        (
            "....#...",
            "....1.gg",
            ".ss.#.gg",
            ".ss.####",
            "....2.gg",
            "##..#.gg",
            "k#..#...",
            "....#...",
        ),
        (
            "....#...",
            ".gg.#...",
            "##1###..",
            "..s..#gg",
            ".ss..2gg",
            "##...#gg",
            "k#...#..",
            ".....#..",
        ),
    ),
    # The way begins in the opposite direction.
    "Detour": (
        (
            "........",
            ".....ss.",
            ".....ss.",
            ".#######",
            "........",
            ".....gg.",
            ".....gg.",
            "........",
        ),
        (
            "...gg...",
            "........",
            ".#######",
            "........",
            "#######.",
            "........",
            "...ss...",
            "........",
        ),
    ),
}
