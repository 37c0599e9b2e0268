"""Sentences of the lab's world that tell no relation: what does not matter, questions, and how a solution speaks.

The last of each table is kept for the out-of-distribution split; a table `MORE_...` is of a wide world, beside it.
"""

from __future__ import annotations

#: What says nothing that the question needs.
DISTRACTORS = (
    "{a} is {n} years old.",
    "{a} lives at number {n}.",
    "It is {n} minutes to the nearest shop.",
    "{a} has a dog that weighs {n} kilograms.",
    "{a} was born {n} years ago.",
    "The day before, {a} slept for {n} hours.",
    "There are {n} children in the class of {a}.",
    "The bus of {a} has the number {n}.",
)
MORE_DISTRACTORS = (
    "The school of {a} has {n} rooms.",
    "It takes {a} {n} minutes to get home.",
    "{n} people live in the street of {a}.",
    "Outside it is {n} degrees.",
    "{a} has read about this on page {n}.",
    "The table of {a} is {n} years old.",
)
#: Ways to ask, beside the direct question. The last is unseen.
QUESTIONS = ("Find out how many {asks}.", "Work out how many {asks}.", "It is asked how many {asks}.")
MORE_QUESTIONS = (
    "Tell how many {asks}.",
    "The question is how many {asks}.",
    "Say how many {asks}.",
    "What we want to know is how many {asks}.",
)

#: A calculation with its result, and a clause that states it. The last is unseen.
STATED = (
    "{Clause_with}.",
    "{sum} = {value}, so {clause}.",
    "{Clause}, because {sum} = {value}.",
    "To find out how many {asks}, take {sum} = {value}.",
    "We have {sum} = {value}. So {clause}.",
    "{Spoken} is {value}, so {clause}.",
    "From {sum} = {value} it follows that {clause}.",
)
MORE_STATED = (
    "{Clause}: {sum} = {value}.",
    "{sum} = {value}. {Clause}.",
    "As {sum} = {value}, {clause}.",
    "Since {sum} is {value}, {clause}.",
    "We get {sum} = {value}; {clause}.",
    "{sum} gives {value}, which means that {clause}.",
    "Calculating {sum} gives {value}: {clause}.",
    "{Spoken} makes {value}. {Clause}.",
    "How many {asks}? {sum} = {value}.",
    "That means {clause}, since {sum} = {value}.",
    "Calculate {sum} = {value}.",
    "Because of {sum} = {value}, {clause}.",
    "Now {sum} = {value}, hence {clause}.",
)
#: A fact of the problem, restated. The last is unseen.
RESTATED = ("We know that {fact}.", "The problem says that {fact}.", "It is given that {fact}.")
MORE_RESTATED = (
    "As the problem tells us, {fact}.",
    "In the text it says that {fact}.",
    "From the problem: {fact}.",
    "We read that {fact}.",
    "Remember that {fact}.",
)
#: What is done next, without doing it. The last is unseen.
PLANNED = (
    "First we find out how many {asks}.",
    "Now we need to know how many {asks}.",
    "Next we look for how many {asks}.",
)
MORE_PLANNED = (
    "Let us see how many {asks}.",
    "To go on we want to know how many {asks}.",
    "What is needed now is how many {asks}.",
    "The next thing to find is how many {asks}.",
    "We still have to find how many {asks}.",
)
ANSWERED = "The answer is {value}."
SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
