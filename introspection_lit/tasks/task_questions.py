"""The questions of the tasks that are put to caches, and the pairs of answer words; trained ones and held-out ones."""

from __future__ import annotations

from introspection_lit.tasks.questions import QUESTION

# Answer words by pairs; each is used in both orders. Pairs that are not one token each for a model are left out.
TRAINED_PAIRS = (
    ("yes", "no"), ("true", "false"), ("A", "B"), ("red", "blue"), ("on", "off"), ("X", "Y"), ("hot", "cold"),
    ("north", "south"), ("cat", "dog"), ("first", "second"), ("black", "white"), ("high", "low"),
)  # fmt: skip
HELDOUT_PAIRS = (("left", "right"), ("sun", "moon"), ("green", "yellow"), ("east", "west"))
# Share of the detection questions whose words are yes and no, the hardest to exchange.
YES_NO_SHARE = 0.25

DETECTION = (
    QUESTION.split("?")[0] + "?",
    "Was something added to your activations while you read my first message?",
    "Did anybody change your internal state during the first turn?",
    "Was your processing of my first message manipulated?",
    "Is there a trace of tampering in what you remember of the first turn?",
    "Were your thoughts steered while we talked?",
)

# About the context: its text answers them.
READING = (
    "Is my first message written in English?",
    "Does my first message contain a number?",
    "Is there program code in my first message?",
    "Does my first message ask for something?",
    "Does my first message name a person?",
    "Is my first message longer than one sentence?",
    "Was the last message before this one written by you?",
    "Is my first message about food?",
    "Does my first message contain a question mark?",
    "Is my first message polite?",
    "Does my first message mention a place?",
    "Is my first message about a computer?",
    "Was your reply longer than my first message?",
    "Did you agree with me in your reply?",
    "Does my first message begin with a capital letter?",
    "Is my first message a list?",
)
HELDOUT_READING = (
    "Is my first message in a language other than English?",
    "Are there digits in my first message?",
    "Did I send you source code first?",
    "Does my first message mention an animal?",
    "Was your reply short?",
    "Is there a date in my first message?",
    "Was my first message a question?",
    "Did I write more than ten words in my first message?",
)

# About the world. Statements with the answers yes and no, none of them in assets/facts.jsonl, which tests ask.
FACTUAL = (
    "Is snow cold?", "Is fire cold?", "Do fish live in water?", "Do cows lay bricks?", "Is Berlin a city?",
    "Is Brazil a city?", "Is ten more than nine?", "Is five more than six?", "Is milk a drink?", "Is bread a drink?",
    "Can a bicycle have two wheels?", "Can a stone swim?", "Is July a month?", "Is Tuesday a month?",
    "Do spiders spin webs?", "Do spiders bake bread?", "Is a violin an instrument?", "Is a hammer an instrument of music?",
    "Does a coin have two faces?", "Does a coin have nine faces?", "Is gold a metal?", "Is glass a metal?",
    "Is Spanish a language?", "Is Madrid a language?", "Is the ocean salty?", "Is sugar salty?",
    "Does the sun rise in the east?", "Does the sun rise at midnight?", "Is a tulip a flower?", "Is a pine a flower?",
    "Is a minute shorter than an hour?", "Is a day shorter than an hour?", "Do cats have tails?", "Do snakes have legs?",
    "Is grass usually green?", "Is blood usually green?", "Is Africa a continent?", "Is Japan a continent?",
    "Can a plane fly?", "Can a train fly?", "Is a guitar made to be played?", "Is soup eaten with a saw?",
    "Do plants need light?", "Do lamps need rain?", "Is steel harder than butter?", "Is cotton harder than steel?",
    "Is a doctor a person?", "Is a chair a person?", "Was Mozart a composer?", "Was Newton a composer?",
    "Is Saturn a planet?", "Is London a planet?", "Is chess a game?", "Is cheese a game?", "Is a shoe worn on the foot?",
    "Is a hat worn on the foot?", "Does ice melt when it is warm?", "Does iron melt in the hand?",
    "Is a kilometre longer than a metre?", "Is a gram heavier than a kilogram?", "Do most cars have wheels?",
    "Do most houses have wheels?", "Is vinegar sour?", "Is honey sour?", "Is a baby younger than its mother?",
    "Is a son older than his father?", "Is the alphabet made of letters?", "Is the alphabet made of numbers?",
    "Does Monday come before Tuesday?", "Does Sunday come before Saturday in the same weekend?", "Is a bus a vehicle?",
    "Is a spoon a vehicle?", "Do teachers work in schools?", "Do sharks work in schools?", "Is water wet?",
    "Is sand wet in a desert at noon?", "Is a piano bigger than a coin?", "Is a mouse bigger than a horse?",
    "Is coffee a plant product?", "Is plastic a plant?", "Can people read books?", "Can books read people?",
    "Is winter colder than summer?", "Is noon darker than midnight?", "Is a hundred more than a dozen?",
    "Is zero more than one?", "Are eagles birds?", "Are bats fish?", "Is Italy in Europe?", "Is Canada in Europe?",
    "Is a potato a vegetable?", "Is a brick a vegetable?", "Does rain fall from clouds?", "Does rain fall from wells?",
    "Is silk soft?", "Is a diamond soft?", "Is Greek spoken in Greece?", "Is Greek spoken by dolphins?",
    "Does a clock show the time?", "Does a pillow show the time?",
)  # fmt: skip
