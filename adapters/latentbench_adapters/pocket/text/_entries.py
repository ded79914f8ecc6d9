"""The encyclopedic half of the general domain: animals, towns, inventions and planets."""

from __future__ import annotations

from latentbench_adapters.pocket.text._grammar import Topic

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
