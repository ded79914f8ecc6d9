"""Everyday text: small stories, letters, reports and encyclopedic entries on varied topics."""

from __future__ import annotations

import random

from latentbench_adapters.pocket.text.grammar import Lexicon, Topic, compose

ENTRIES: tuple[Topic, ...] = (
    Topic(
        opening=(
            "the {color} {animal} is a [bird|mammal|wild animal] that lives in the {habitat} of {region}.",
            "the {animal} is found in the {habitat} of {region}, mostly in small groups.",
        ),
        middle=(
            "an adult {animal} weighs about {weight} kilograms and can live for {age} years.",
            "it feeds on {diet}, which it finds [at night|at dawn|during the day].",
            "in {season} the female raises [one|two|three] young, and the male guards the nest.",
            "unlike its relatives, the {animal} has {color} marks on its neck and a [short|long] tail.",
            "its main enemies in the {habitat} are [eagles|wolves|foxes|large snakes].",
            "when {diet} become rare, the {animal} leaves {region} and moves further south.",
            "the first description of the {animal} was written by {person} in {year}.",
            "people in {region} believe that seeing a {color} {animal} brings good luck.",
        ),
        closing=(
            "today the {animal} is protected in {region}, and its numbers are [growing|falling|stable].",
            "since {year2} it has been the symbol of {region}.",
        ),
        lexicon={
            "animal": ("heron", "otter", "badger", "lynx", "crane", "marten", "stag", "falcon"),
            "habitat": ("forests", "wetlands", "mountains", "grasslands", "coastal islands"),
            "region": ("northern Europe", "Central Asia", "southern Africa", "eastern Canada", "Patagonia"),
            "diet": ("fish", "insects", "berries", "small rodents", "roots", "seeds"),
            "weight": range(3, 90),
            "age": range(6, 40),
        },
    ),
    Topic(
        opening=(
            "{town} is a [city|town|port] on the river {river}, founded in {year}.",
            "the {river} is a river that flows through {town} and reaches the sea after {length} kilometres.",
        ),
        middle=(
            "the [cathedral|castle|town hall] of {town} was built by {person} in {year}.",
            "for centuries {town} traded {goods} with the villages along the {river}.",
            "the bridge over the {river} is {length} metres long and painted {color}.",
            "a flood of the {river} destroyed the lower part of {town} one {season}.",
            "its university, opened in {year2}, is known for the study of [history|music|physics|languages].",
            "the population of {town} doubled when the railway brought new {goods} factories.",
            "every {month} the people of {town} celebrate a festival with boats on the {river}.",
        ),
        closing=(
            "visitors come to {town} for its [museums|gardens|old streets] and the view over the {river}.",
            "the {goods} trade ended long ago, but {town} still has the wheel of {goods} on its flag.",
        ),
        lexicon={
            "river": ("Arlen", "Tavva", "Moss", "Orrin", "Kessel", "Linde"),
            "goods": ("salt", "wool", "silk", "timber", "iron", "wine"),
            "length": range(120, 980, 10),
        },
    ),
    Topic(
        opening=(
            "the {device} was invented in {year} by {person}, [an engineer|a teacher|a clockmaker] from {town}.",
            "in {year} {person} of {town} built the first {device}.",
        ),
        middle=(
            "{person.1} had the idea while watching [the stars|a water wheel|ships in a storm|children at play].",
            "the first model was made of {material} and weighed more than a horse.",
            "{person} showed the {device} to {person2}, who did not believe that it would work.",
            "early versions broke often, because the {material} became soft in {season}.",
            "{person2} later replaced the {material} with {material2}, and the {device} became cheaper.",
            "newspapers in {town} called it a miracle, and {person} became famous.",
            "in {year2} nearly every [school|farm|ship|household] owned a {device}.",
        ),
        closing=(
            "the original {device} of {person} can be seen in the museum of {town}.",
            "without the {device}, modern [travel|science|farming|music] would be hard to imagine.",
        ),
        lexicon={
            "device": ("telescope", "barometer", "printing press", "steam pump", "sewing machine", "compass"),
            "material": ("copper", "oak", "brass", "leather", "glass", "steel"),
        },
    ),
    Topic(
        opening=(
            "{planet} is the [second|third|fourth|fifth] planet of the star {star} and has {moons} moons.",
            "astronomers discovered {planet} in {year} while they were observing the star {star}.",
        ),
        middle=(
            "one year on {planet} lasts {moons} months, and its sky is {color}.",
            "the surface of {planet} is covered with [ice|dust|deep craters|frozen lakes].",
            "its largest moon was named after {person}, who calculated its orbit.",
            "light from {star} needs {minutes} minutes to reach {planet}.",
            "a space probe passed {planet} in {month} and photographed {color} clouds.",
            "because {star} is weak, the nights on {planet} are longer than those on Earth.",
            "it is unlikely that anything lives under the {color} clouds of {planet}.",
        ),
        closing=(
            "a new telescope near {town} will look at {planet} and its {moons} moons in more detail.",
            "{person} once wrote that {planet} is the most beautiful world around {star}.",
        ),
        lexicon={
            "planet": ("Veda", "Corvo", "Ilion", "Thessa", "Nerin", "Oberra"),
            "star": ("Alkor", "Mirane", "Sadira", "Tolan", "Zephra"),
            "moons": range(2, 30),
            "minutes": range(4, 90),
        },
    ),
)


MEN = ("Daniel", "Peter", "Samir", "Oscar", "Felix", "Martin", "Jonas", "Victor", "Andre")
WOMEN = ("Clara", "Emma", "Julia", "Laila", "Sofia", "Hannah", "Greta", "Irene", "Naomi")

LEXICON: Lexicon = {
    "person": (*(f"{name}/he/him/his" for name in MEN), *(f"{name}/she/her/her" for name in WOMEN)),
    "kin": (
        "brother/he/his",
        "sister/she/her",
        "uncle/he/his",
        "aunt/she/her",
        "cousin/she/her",
        "grandfather/he/his",
    ),
    "town": (
        "Ashford",
        "Millbrook",
        "Port Ellen",
        "Oldham",
        "Redcliff",
        "Lindale",
        "Westmere",
        "Harrow Hill",
    ),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": ("January", "March", "April", "June", "August", "October", "November"),
    "season": ("spring", "summer", "autumn", "winter"),
    "color": ("red", "blue", "green", "yellow", "white", "black", "brown", "silver"),
    "weather": ("rain", "snow", "fog", "wind", "sunshine"),
    "mood": ("happy", "tired", "nervous", "proud", "curious", "hungry", "quiet"),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "proverb": (
        "patience opens heavy gates",
        "slow water is deep",
        "a full purse has many cousins",
        "every road ends at a door",
        "old wood burns best",
        "the wind forgets nobody",
        "bread first and songs later",
    ),
    "year": range(1720, 1990),
}

ASIDES: tuple[str, ...] = (
    "nobody in {town} [had expected|could explain|wanted to talk about] it.",
    "it was one of those {weekday}s when the {weather} never seemed to end.",
    "[my|our] grandmother used to say that {proverb}.",
    "a {color} [balloon|kite|flag|ribbon] was hanging from the [tower|chimney|balcony|lamp post].",
    "the old clock struck [six|seven|nine|twelve], and the streets became {mood2}.",
    "somewhere a [baby|cat|door|bell|radio] could be heard, and then it was silent again.",
    "the [mayor|doctor|baker|postman|librarian] of {town} told a different story.",
    "in {month}, the days are [short and dark|long and bright|cold but clear].",
    "many [books|songs|poems|paintings] have been made about it since then.",
    "there is [little|no|some] evidence that this was really true.",
    "the price of [coffee|sugar|coal|paper|candles] had doubled since {year}.",
    "some people say that {proverb}, and perhaps they are right.",
    "by then the [moon|sun] had [risen|set] over the roofs of {town}.",
    "a [thin|tall|friendly|strange] man in a {color} hat asked for the way to {town}.",
    "two [soldiers|fishermen|tourists|musicians] from {town} were drinking coffee and laughing.",
    "an exhibition about this was shown in {town} in {year}.",
    "the kitchen smelled of [cinnamon|soup|fresh paint|smoke|onions].",
    "on the wall there was a picture of a [ship|mountain|lighthouse|bull|queen].",
    "this happened long before the war, when {town} had only one [school|road|doctor|telephone].",
    "everybody agreed that it was the [best|worst|longest|strangest] {season} in years.",
)

STORIES: tuple[Topic, ...] = (
    Topic(
        opening=(
            "on {day} morning {person} went to the market in {town} to buy {fruit}.",
            "the market of {town} opens every {day}, and {person} always [arrives|gets there] early.",
        ),
        middle=(
            "the [first|corner|old] stall sold {fruit} and {food} from a farm near the river.",
            "{person} asked the [farmer|seller|woman behind the table] for a [bag|basket|box] of {fruit}.",
            '"These {fruit} are the best in {town}," the [farmer|seller] said with a smile.',
            "{person.1} also wanted some {food}, but the price was too high.",
            "a [small|noisy] crowd had gathered around a man who played the {instrument}.",
            "because of the {weather}, most people stood under the {color} roof.",
            "{person} counted {person.3} money twice and put the {fruit} into {person.3} {color} bag.",
            "near the [fountain|church|bridge] {person.1} met {person2}, who was carrying {food} too.",
            "{person2} told {person.2} that the {food} was cheaper [at the other end|across the street].",
        ),
        closing=(
            "in the evening {person} made a [cake|pie|salad] with the {fruit} and shared it with {person2}.",
            "{person.1} walked home feeling {mood}, with the {fruit} on {person.3} arm.",
        ),
        lexicon={
            "fruit": ("apples", "pears", "cherries", "plums", "oranges", "lemons", "grapes"),
            "food": ("bread", "cheese", "honey", "butter", "fish", "olives"),
            "instrument": ("violin", "guitar", "flute", "trumpet", "accordion"),
        },
    ),
    Topic(
        opening=(
            "{person} had a [small|young|clever] dog called {dog}, and one {day} the dog was gone.",
            "one {season} evening {dog}, the dog of {person}, did not come home.",
        ),
        middle=(
            "{person} looked [under the bed|behind the shed|in the kitchen] first, but {dog} was not there.",
            "{person.1} called the name again and again: {dog}! {dog}!",
            "the neighbours in {town} had heard barking near the {place}.",
            "{person2} offered to help, and together they walked to the {place} with a lamp.",
            "the {weather} made it hard to see, and {person} was getting {mood}.",
            "suddenly {person2} found a {color} collar in the grass beside the {place}.",
            '"That belongs to {dog}," said {person}, and {person.3} voice was shaking.',
            "they followed the [tracks|footprints] until they came to the {place}.",
        ),
        closing=(
            "there sat {dog}, wet and dirty, [chewing on an old shoe|next to a sleeping cat], and {person} laughed.",
            "{dog} jumped into the arms of {person}, and {person2} carried the lamp back home.",
        ),
        lexicon={
            "dog": ("Biscuit", "Shadow", "Pepper", "Rusty", "Daisy", "Bruno"),
            "place": ("old mill", "lake", "railway bridge", "school yard", "pine forest", "empty barn"),
        },
    ),
    Topic(
        opening=(
            "the train to {town} left the station at <time> on a {day} in {month}.",
            "{person} took the [early|late|slow] train to {town} because {person.3} {kin} lived there.",
        ),
        middle=(
            "{person} sat by the window and read a [newspaper|novel|map] about {country}.",
            "outside, the [fields|hills|villages] were hidden by the {weather}.",
            "across from {person.2} sat a [soldier|teacher|student|nurse] with a {color} suitcase.",
            "the conductor checked the tickets and said that they would be {minutes} minutes late.",
            "{person} wondered if {person.3} {kin} would still be waiting on the platform.",
            "at the next stop a family with [two|three|four] children got on and shared their sandwiches.",
            "the stranger with the {color} suitcase had once travelled through {country}.",
            "{minutes} minutes later the lights of {town} appeared behind the hills.",
        ),
        closing=(
            "at the station of {town} {person.3} {kin} was waving, and {person} forgot the long journey.",
            "when the train stopped in {town}, {person} felt {mood} and stepped into the {weather}.",
        ),
        lexicon={
            "country": ("Spain", "Norway", "Egypt", "Japan", "Brazil", "Canada", "India"),
            "minutes": range(10, 60, 5),
        },
    ),
    Topic(
        opening=(
            "{person} planted {plant} in the garden behind the house in {month}.",
            "every {season} {person} works in the garden, where the {plant} grow along the fence.",
        ),
        middle=(
            "first {person.1} dug the soil with a [spade|rusty shovel] and pulled out the weeds.",
            "the {plant} need [plenty of water|a lot of light|rich soil] and a little patience.",
            "{person.3} {kin} thought that the {plant} would never survive the {season}.",
            "after two weeks the first {color} leaves came out of the ground.",
            "snails are the worst enemy of {plant}, so {person} collected them every night.",
            "a {bird} built its nest in the hedge and sang above the {plant}.",
            "when there was no rain, {person} carried {color} buckets from the well.",
            "the {bird} was not afraid of {person} and ate worms beside {person.3} boots.",
        ),
        closing=(
            "by the end of {month2} the {plant} were taller than {person}, and even {person.3} {kin} was impressed.",
            "{person} cut the best {plant} and gave them to {person2} on {day}.",
        ),
        lexicon={
            "plant": ("roses", "beans", "tomatoes", "sunflowers", "tulips", "pumpkins"),
            "bird": ("robin", "sparrow", "blackbird", "finch", "swallow"),
        },
    ),
    Topic(
        opening=(
            "{town} played against {town2} on {day}, and {crowd} people came to watch.",
            "the {sport} final between {town} and {town2} was played in heavy {weather}.",
        ),
        middle=(
            "{person}, the captain of {town}, won the [toss|first ball] and chose the southern end.",
            "in the first half {town2} were faster, and their [goalkeeper|defender|coach] shouted all the time.",
            "{person2} scored for {town2} after a long pass from the left.",
            "{town} answered quickly: {person} beat two players and scored with {person.3} left foot.",
            "the referee, dressed in {color}, stopped the game because of the {weather}.",
            "during the break the team of {town} drank tea and talked about {person2}.",
            "{crowd} voices sang the song of {town} when the players came back.",
        ),
        closing=(
            "in the last minute {person} scored again, and "
            "{town} won the {sport} cup for the [first|second|third] time.",
            "the match ended in a draw, and {person} shook hands with {person2}.",
        ),
        lexicon={"sport": ("football", "hockey", "handball", "rugby"), "crowd": range(300, 9000, 100)},
    ),
    Topic(
        opening=(
            "dear {person}, I am writing to you from {town}, where the {season} has been [cold|mild|strange].",
            "dear {person}, thank you for the letter that arrived on {day}.",
        ),
        middle=(
            "we live in a [small|large|narrow] house with a {color} door and a view of the sea.",
            "my {kin} has found work at the {work}, and {kin.1} comes home late.",
            "last {day} we went to the {work} and I saw how hard {kin.2} days are.",
            "do you remember {person2}? {person2.1} now plays the piano in the hotel of {town}.",
            "the children are learning to [swim|read|ride a bicycle|sing], and they ask about you.",
            "I think of the {season} when you, {person2} and I walked along the beach in the {weather}.",
            "please tell {person2} that the {color} coat {person2.1} lent me is still warm.",
        ),
        closing=(
            "come and visit us in {month}, dear {person}; {town} is beautiful then. With love, your {person3}.",
            "write soon, {person}, and stay well. Your old friend, {person3}.",
        ),
        lexicon={"work": ("harbour", "bakery", "library", "post office", "theatre", "glass factory")},
    ),
)


def document(rng: random.Random) -> str:
    """One everyday document: a story or letter in three cases of five, else an encyclopedic entry."""
    topic = rng.choice(STORIES) if rng.random() < 0.6 else rng.choice(ENTRIES)
    text = compose(rng, topic, LEXICON, ASIDES, 3, 6)
    return text.replace("<time>", f"{rng.randint(5, 22)}:{rng.randrange(0, 60, 5):02d}")
