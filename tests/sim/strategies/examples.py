"""Small programs that a complete search has to get right, each for a reason of its own."""

from tests.programs.code import (
    Await,
    Call,
    Choose,
    Expect,
    Follow,
    Fork,
    Locked,
    Meet,
    Program,
    Publish,
    Read,
    Reader,
    Retire,
    Risk,
    Sleep,
    Synchronize,
    Time,
    When,
    Write,
)

READ, WRITE = Read("x"), Write("x", 1)

EXAMPLES = {
    "a fork within a fork": Program(((Fork((WRITE, Fork((READ,)))),), (WRITE,))),
    "a fork that is joined": Program(((Fork((WRITE,), joined=True), READ), (Write("x", 2),))),
    "a call after a grace period": Program(
        ((Reader("rcu", (READ,)),), (Call("rcu", (WRITE,)), READ))
    ),
    "a call that forks": Program(((Reader("rcu", (READ,)),), (Call("rcu", (Fork((WRITE,)),)),))),
    "a choice at once": Program(((Choose(3), When(1, (WRITE,))), (READ,))),
    "a choice within a choice": Program(
        ((Choose(), When(1, (Choose(), When(1, (WRITE,))))), (READ, When(1, (Choose(),))))
    ),
    "a choice, and a race that is asleep with another value": Program(
        ((READ, Choose()), (Read("y"),), (Write("y", 1), WRITE))
    ),
    "a choice that nobody sees": Program(((Choose(), Choose()), (Choose(),))),
    "somebody waits": Program(((Await("x", 2),), (WRITE, Write("x", 2)), (Write("x", 0),))),
    "two wait for each other": Program(((Await("x"), Write("y", 1)), (Await("y"), WRITE))),
    "before both or behind both": Program(
        ((Write("x", 1),), (Write("y", 1),), (Meet(("x", "y")), Write("z", 1)))
    ),
    "before one and behind the other": Program(
        ((Write("x", 1),), (Write("y", 1),), (Meet(("y", "x"), "falling"),))
    ),
    # What comes between two steps that race, and leads to neither, races with a third.
    "one race beside another": Program(
        ((WRITE,), (Write("z", 1),), (Write("x", 2), Write("z", 2)))
    ),
    # Two readers that come after the writer of themselves, though their threads are the first.
    "readers are let in": Program(((Await("y"), READ), (Await("y"), READ), (Write("y", 1), WRITE))),
    "sleepers": Program(((Sleep(5), WRITE), (Sleep(10), READ), (Sleep(5), Time()))),
    "clocks are read, and a shorter sleep is begun": Program(((Sleep(5),), (Time(),), (Sleep(0),))),
    "two shorter sleeps are begun": Program(
        ((Sleep(5),), (Fork((Sleep(0),)),), (Fork((Sleep(0),)), Time()))
    ),
    "two steps that are fatal, and become so again": Program(
        ((Expect("x", 1),), (Expect("x", 1),), (Write("x", 0),))
    ),
    "a choice before one that is fatal": Program(
        ((WRITE,), (Choose(), Risk(2, (0,))), (Write("x", 2),))
    ),
    "choices that are fatal": Program(((Risk(2, (0,)), WRITE), (Risk(2, (0, 1)),), (WRITE,))),
    "nested conditions": Program(
        ((READ, When(1, (Read("y"), When(1, (Write("z", 1),))))), (WRITE, Write("y", 1)))
    ),
    "deadlock of locks": Program(
        ((Locked("a", (Locked("b", (READ,)),)),), (Locked("b", (Locked("a", (WRITE,)),)),))
    ),
    "attempts": Program(((Locked("a", (WRITE,), True),), (Locked("a", (READ,)),))),
    "two grace periods": Program(
        ((Reader("rcu", (READ,)), WRITE), (Synchronize("rcu"), Synchronize("rcu"), READ))
    ),
    # Deadlock, where the last step is of the thread that could have had the lock first.
    "stuck behind the last step": Program(
        ((Locked("a", (Await("x"),)),), (READ, Locked("a", (READ,))))
    ),
    # Whether a section had ended when a grace period started matters behind the end of that.
    "fatal beside a grace period": Program(
        (
            (Reader("rcu", (Expect("x", 1),)),),
            (Reader("rcu", (READ,)),),
            (Synchronize("rcu"), Expect("x", 1)),
        )
    ),
    # A use after free that could have come before the steps of a third, uninvolved thread.
    "fatal before the others": Program(
        ((Synchronize("rcu"),), (Retire("p"),), (Publish("p"), Follow("p")))
    ),
}
