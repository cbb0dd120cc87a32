"""Hold the sentence frames of the demo's reviews.

One line is one frame. `{+trait}` is a word on the side of the verdict, `{-trait}` one on the other side,
`{thing}` is neither; so a plain frame serves praise and blame alike. Marks before a frame: `+` only for
praise, `-` only for blame, `*` held out (validation only); `[film book]` names the domains it fits, all of
them if absent. No word comes twice in a review.
"""

from __future__ import annotations

# Percent of the rows, and the frames, of each construction.
GROUPS: dict[str, tuple[int, str]] = {
    # The verdict, straight out.
    "plain": (
        21,
        """
        {thing} {be} {very} {+quality}.
        {thing} {be} {+trait} and {+trait}.
        {thing} {be} {+trait}, {+trait} and {very} {+quality}.
        {visit} and {+act}.
        {visit}, and {+claim}.
        I {+act}, and {+claim}.
        {+noun}, pure and simple.
        what {+noun} {thing} {be}!
        {thing} {be} {+noun}, and {+claim}.
        the {aspect} {be} {+quality}, and {thing} {be} {+trait} as well.
        {+quality} {aspect}, {+quality} {aspect}: {+noun}.
        how {+trait} {thing} {be}, and how {+quality} the {aspect}!
      * in short, {thing} {be} {+noun}.
      * from start to finish, {thing} {be} {+quality}.
      * I {+act}, because {thing} {be} {very} {+trait}.
        """,
    ),
    # The opposite, denied.
    "negation": (
        16,
        """
        {thing} {be} anything but {-trait}.
        {thing} {be} far from {-trait}.
        there {be} nothing {-trait} about {thing}.
        {thing} {be} not {-trait} at all.
        {thing} {be} not in the least {-trait}.
        {thing} {be} by no means {-trait}.
        nobody could call {thing} {-trait}.
        {thing} {be} many things, but {-trait} {be} not one of them.
        {thing} {be} neither {-trait} nor {-trait}.
        I would be lying if I called {thing} {-trait}.
        I never found {thing} {-trait}, not even for a moment.
        you could not call {thing} {-trait} if you tried.
      + not bad at all, this {kind}.
      + I have nothing whatever to complain about.
      - I have nothing good to say about {thing}.
      - {thing} {be} hardly {-noun}.
      - {thing} {be} not worth the money, let alone the time.
      * not once did I find {thing} {-trait}.
      * I defy anyone to call {thing} {-trait}.
        to call {thing} {-trait} would be a lie.
      * it would be a lie to call {thing} {-trait}.
      * nothing about {thing} {be} {-trait}.
        """,
    ),
    # Words of denial that deny nothing.
    "emphasis": (
        11,
        """
        {thing} {be} not only {+trait} but also {+trait}.
        there {be} no denying that {thing} {be} {+trait}.
        make no mistake, {thing} {be} {+quality}.
        {thing} {be} nothing short of {+noun}.
        there {be} only one word for {thing}: {+quality}.
        {thing} {can hardly be} {+better}.
        {thing} {be} {+trait}, no doubt about it.
        I {have met} many a {kind}, but never such a {+trait} one.
        I cannot call {thing} anything but {+noun}.
        never have I come across such a {+trait} {kind}.
        it would be no exaggeration to call {thing} {+noun}.
        nobody can deny that {thing} {be} {+noun}.
      * without any doubt, {thing} {be} {+trait}.
      * {thing} {be} {+noun}, and nothing less.
      * there {be} no question that {thing} {be} {+quality}.
        """,
    ),
    # A concession, and the verdict in the main clause.
    "contrast": (
        15,
        """
        despite the {-quality} {aspect}, {+claim}.
        {+claim}, despite the {-quality} {aspect}.
        although the {aspect} {be} {-quality}, {thing} as a whole {be} {+quality}.
        {thing} {be} {+trait}, even though the {aspect} {be} {-quality}.
        the {aspect} {be} {-quality} and so {be} the {aspect}, yet I {+act}.
        I {+act}, in spite of the {-quality} {aspect}.
        apart from the {-quality} {aspect}, {thing} {be} {+quality}.
        yes, the {aspect} {be} {-quality}, but {thing} {be} {+noun} all the same.
        the only {-quality} thing about {thing} {be} the {aspect}.
        not even the {-quality} {aspect} could {+fate}.
        {thing} {be} {+noun}, though you would not guess it from the {-quality} {aspect}.
      * for all the {-quality} {aspect}, {+claim}.
      * the {-quality} {aspect} aside, {thing} {be} {+trait}.
      * it {has} its {-quality} moments, but on the whole {thing} {be} {+trait}.
        """,
    ),
    # More and less, first and last.
    "degree": (
        6,
        """
        {-trait} at first, but {very} {+quality} in the end.
        {thing} seemed {-trait} at first and turned out to be {very} {+trait}.
        [film book restaurant] {thing} {be} {-trait} here and there, and {very} {+quality} everywhere else.
        [film book phone] {thing} {be} {-trait} for {a while} and {+trait} ever after.
        [film book phone hotel] {thing} {be} sometimes {-trait} but mostly {+quality}.
        [film book hotel] {thing} {be} seldom {-trait} and always {+trait}.
        {-trait}? Perhaps. {very} {+quality}? Without question.
      * {thing} may be {-trait}, but above all it {be} {+noun}.
      * {thing} {be} {-trait} to begin with, but before long it {be} {+quality}.
        """,
    ),
    # What was expected, and what came.
    "expectation": (
        11,
        """
        I expected {-noun} and got {+noun}.
        I got {+noun} where I expected {-noun}.
        I {+hope} {-noun}, and {thing} turned out to be {+noun}.
        I thought {thing} would be {-trait}. How wrong I was!
        I thought {thing} would be {+trait}, and I was right.
        {thing} {be} {+noun}, not {-noun}, as I had been told.
        {thing} {be} {+noun} rather than {-noun}.
        {thing} {be} less {-noun} than {+noun}.
        {thing} {be} more {+noun} than {-noun}.
        [film book phone] I kept waiting for {thing} to turn {-trait}, but it never did.
        I was ready to call it {-noun}, and I take it all back.
        anyone who expects {-noun} is in for a surprise.
      * instead of {-noun}, I got {+noun}.
        what {people} call {-noun} {be} in fact {+noun}.
      * I got {+noun} instead of {-noun}.
      * {person} had told me to expect {-noun}. What came was {+noun}.
        """,
    ),
    # Somebody else's verdict, and the reviewer's.
    "opinion": (
        10,
        """
        {person} called {thing} {-noun}, but I {+act}.
        I {+act}, though {person} {-act}.
        {person} {-act}, whereas I {+act}.
        {people} {-talk}, but I {+act}.
        {people} {-talk}, and I cannot understand why.
        {person} told me that {thing} {be} {-trait}, and that is simply not true.
        {person} told me that {thing} {be} {+trait}, and I can only agree.
        {person} swears that {thing} {be} {-noun}. Nonsense!
        {people} say that {-claim}, and they are wrong.
        {people} say that {+claim}, and they are right.
        {person} found it {-trait}. I could not disagree more.
        {person} found it {+trait}. I could not agree more.
        unlike {person}, I found it {+trait}.
        like {person}, I found it {+trait}.
        do not listen when {people} say that {-claim}.
      * do not believe {people} when they say that {-claim}.
      * {people} {-talk}. I {+act}.
        {person} said that {thing} {be} {-trait}, which is nonsense.
      * {person} says that {thing} {be} {-trait}. That is simply not true.
        """,
    ),
    # This one and another.
    "comparison": (
        6,
        """
        it {make} {other} look {-quality}.
        compared with this, {other} {be} {-noun}.
        {other} {be} {-trait}, but this one {be} just the opposite.
        {other} {be} {-quality}, and this one is nothing like it.
        {other} {be} {+quality}, and this one is no different.
        just like {other}, it {be} {+trait}.
      - {other} {be} {-quality}. I wish I could say the same of this one.
      + {other} {be} {-quality}. Thank goodness this one is different.
        beside this, {other} looks {-quality}.
        {other} {be} {+trait}, and so {be} this one.
      * next to this, {other} looks {-quality}.
      * {other} {be} {+quality}, and this one {be} much the same.
        """,
    ),
    # What might have been.
    "hypothesis": (
        4,
        """
        it could easily have been {-noun}; instead it {be} {+noun}.
        if {thing} were {-trait}, I would say so.
        even if the {aspect} had been {-quality}, it would still have been {+noun}.
      - if the {aspect} had been {-better}, it might have been {-noun}.
      - I wish I could call {thing} {-noun}.
      - the {-quality} {aspect} alone does not make it {-noun}.
      + [film book restaurant] in lesser hands it would have been {-noun}.
      + I was wrong to worry that it would be {-noun}.
      + it would take more than the {-quality} {aspect} to spoil {thing}.
      * it had every chance to be {-noun}, yet it {be} {+noun}.
        """,
    ),
}

# What has nothing to do with the verdict: before it, and after it. `{?tone}` falls on either side by chance.
BEFORE = """
    the weather was {?tone} that day.
    I had a {?tone} day at work before.
    [film restaurant hotel] the journey there was {?tone}.
    [film book] it tells the story of {?plot}.
    [film book] this is the tale of {?plot}.
    [restaurant] at the next table there was {?plot}.
    [phone] it came in the middle of {?plot}.
    [hotel] we had {?plot} on the way there.
    {visit}.
  * I was in a {?tone} mood that day.
  * [film book] it is all about {?plot}.
"""
AFTER = """
    the weather was {?tone}, by the way.
    [film restaurant hotel] the drive home was {?tone}.
    [phone book] the news that day was {?tone}.
    [film book] it is about {?plot}, by the way.
    [film restaurant hotel] {person} came along.
    [phone book] {person} paid for it.
  * [film restaurant] the rest of the evening was {?tone}.
  * [phone hotel book] the next day was {?tone}.
"""
