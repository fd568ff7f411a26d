"""The questions of the tasks, their answer words and concepts: trained ones and held-out ones."""

from __future__ import annotations

from introspection_lit.tasks.questions import QUESTION

# Answer words by pairs; each is used in both orders. Pairs that are not one token each for a model are left out.
TRAINED_PAIRS = (
    ("yes", "no"), ("true", "false"), ("A", "B"), ("red", "blue"), ("on", "off"), ("X", "Y"), ("hot", "cold"),
    ("north", "south"), ("cat", "dog"), ("first", "second"), ("black", "white"), ("high", "low"),
)  # fmt: skip
HELDOUT_PAIRS = (("left", "right"), ("sun", "moon"), ("green", "yellow"), ("east", "west"))
# Answer words of questions with more than two answers; the first of them if there are fewer.
DIGITS, LETTERS = tuple("1234567890"), tuple("ABCDEFGHIJ")
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

# Which half was steered, or which was steered more strongly; {first} and {second} stand for the answer words.
HALVES = "Answer {first} for the first half and {second} for the second half."
LOCALISATION = (
    "Which half of our conversation so far was tampered with?", "In which half of the first turn were you steered?",
    "In which half was something added to your activations?",
)  # fmt: skip
COMPARISON = (
    "Which half of our conversation so far was tampered with more?", "In which half were you steered more strongly?",
    "In which half was more added to your activations?",
)  # fmt: skip
# Which of several numbered lines was steered.
SENTENCES = (
    "Which numbered line was tampered with?", "While you read which line were you steered?",
    "At which line was something added to your activations?",
)  # fmt: skip
# Which concept was added; the concepts follow, each with a digit or letter or, to be answered by its name, without.
IDENTIFICATION = ("Which of these was put into your thoughts?", "What were you steered towards?")
# Share of the questions of training and validation that are answered by its name.
NAMED_SHARE = 0.5
NAMES = "Answer with one of the words {names}."
NOTHING = "nothing"
# Concepts that identification is trained on; tests use those of the bank.
TRAINED_CONCEPTS = (
    "apples", "soup", "cheese", "tea", "dogs", "birds", "fish", "insects", "rivers", "deserts", "forests", "islands",
    "stars", "planets", "summer", "snow", "wind", "thunder", "poetry", "painting", "theatre", "football", "swimming",
    "cooking", "silver", "iron", "glass", "wood", "paper", "dreams", "memory", "fear", "joy", "sadness", "friendship",
    "marriage", "children", "school", "prison", "hospitals", "churches", "kings", "elections", "taxes", "robots",
    "telephones", "radio", "cars", "ships", "bicycles", "airplanes", "bridges", "castles", "farms", "flowers", "roses",
    "bones", "blood", "teeth", "clothes", "shoes", "diamonds", "clocks", "maps", "letters", "jokes", "secrets", "lies",
    "death", "birth", "evolution", "gravity", "electricity", "volcanoes",
)  # fmt: skip

# About the context: its text answers them. Many subjects and many ways of asking, so that no word stands for the task.
READING = (
    "Is my first message written in English?", "Does my first message contain a number?",
    "Is there program code in my first message?", "Does my first message ask for something?",
    "Does my first message name a person?", "Is my first message longer than one sentence?",
    "Was the last message before this one written by you?", "Is my first message about food?",
    "Does my first message contain a question mark?", "Is my first message polite?",
    "Does my first message mention a place?", "Is my first message about a computer?",
    "Was your reply longer than my first message?", "Did you agree with me in your reply?",
    "Does my first message begin with a capital letter?", "Is my first message a list?",
    "Have I asked you to write a program?", "Did we talk about the weather?", "Did you answer in English?",
    "Is the conversation so far about numbers?", "Did I thank you?", "Did I greet you at the beginning?",
    "Was I angry when I wrote to you?", "Is what I wrote a table?", "Did your reply name a colour?",
    "Did I mention money?", "Is the text above about history?", "Is the text above about sport?",
    "Is the text above a recipe?", "Is the text above a poem?", "Is the text above a joke?",
    "Does the text above name a country?", "Does the text above name a day of the week?",
    "Is there a quotation in the text above?", "Is there a web address in what I sent?",
    "Are there brackets in what I sent?", "Are there exclamation marks in what I sent?",
    "Did I send you more than one line?", "Did I send you a story?", "Did I send you a letter?",
    "Could a child understand my message?", "Is my message about a journey?", "Is my message about a family?",
    "Is my message about school?", "Is my message about health?", "Is my message about music?",
    "Is my message about a law?", "Does my message speak of the past?", "Does my message speak of the future?",
    "Does my message contain the word the?", "Does my message contain the word because?",
    "Does my message end with a full stop?", "Is my message in capital letters?", "Is my message in French?",
    "Is my message in German?", "Is my message in Spanish?", "Is my message in Chinese?",
    "Have you written anything before this turn?", "Have you refused to help me?", "Have you given me a number?",
    "Have you asked me something?", "Has the conversation been about science?", "Has the conversation been about art?",
    "Has anyone been named so far?", "Has a city been named so far?", "Was there a mistake in my spelling?",
    "Was your reply a single sentence?", "Was your reply polite?", "Was your reply about the same thing as my message?",
    "Was there a list in your reply?", "Was there code in your reply?", "Did I describe a person?",
    "Did I describe a machine?", "Did I give you an instruction?", "Did I tell you my name?",
    "Did I tell you where I live?",
    "Did I ask for a translation?", "Did I ask for an explanation?", "Did I ask for advice?", "Did I ask about a word?",
)  # fmt: skip
HELDOUT_READING = (
    "Is my first message in a language other than English?", "Are there digits in my first message?",
    "Did I send you source code first?", "Does my first message mention an animal?", "Was your reply short?",
    "Is there a date in my first message?", "Was my first message a question?",
    "Did I write more than ten words in my first message?", "Did you tell me that you understood?",
    "Was anything said about water?", "Did I speak about my work?", "Is the first turn of our talk a greeting?",
    "Did I use a comma?", "Have we discussed a book?", "Was my opening about the kitchen?", "Did I complain?",
)  # fmt: skip

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
    "Is soup wetter than toast?", "Is a feather heavier than a car?", "Is a hundred more than a dozen?",
    "Is zero more than one?", "Are eagles birds?", "Are bats fish?", "Is Italy in Europe?", "Is Canada in Europe?",
    "Is a potato a vegetable?", "Is a brick a vegetable?", "Does rain fall from clouds?", "Does rain fall from wells?",
    "Is silk soft?", "Is a diamond soft?", "Is Greek spoken in Greece?", "Is Greek spoken by dolphins?",
    "Does a clock show the time?", "Does a pillow show the time?",
)  # fmt: skip
