"""Synthesis procedures: compounds, masses, temperatures, work-up, yields and characterisation."""

from __future__ import annotations

import random

from latentbench_adapters.pocket.text.grammar import Lexicon, Topic, compose

LEXICON: Lexicon = {
    "arene": (
        "toluene",
        "anisole",
        "aniline",
        "benzaldehyde",
        "acetophenone",
        "naphthalene",
        "pyridine",
        "styrene",
    ),
    "product": (
        "methyl benzoate",
        "4-nitroanisole",
        "ethyl cinnamate",
        "benzyl chloride",
        "acetanilide",
        "diphenylmethanol",
        "2-phenylethanol",
        "phenylacetic acid",
        "the bromide",
        "the oxime",
        "the amide",
        "the dimethyl acetal",
    ),
    "reagent": (
        "sodium borohydride",
        "thionyl chloride",
        "acetic anhydride",
        "potassium carbonate",
        "triethylamine",
        "sodium hydride",
        "benzyl bromide",
        "butyllithium",
        "phosphorus oxychloride",
        "lithium aluminium hydride",
    ),
    "solvent": (
        "dichloromethane",
        "tetrahydrofuran",
        "ethanol",
        "acetonitrile",
        "diethyl ether",
        "dioxane",
        "methanol",
    ),
    "wash": ("brine", "saturated sodium bicarbonate", "dilute hydrochloric acid", "ice-cold water"),
    "drier": ("magnesium sulfate", "sodium sulfate", "molecular sieves"),
    "catalyst": (
        "palladium on carbon",
        "copper iodide",
        "boron trifluoride",
        "aluminium chloride",
        "zinc chloride",
    ),
    "gas": ("nitrogen", "argon", "hydrogen"),
    "hue": ("colourless", "pale yellow", "off-white", "orange", "deep violet"),
    "solid": ("needles", "crystals", "powder", "plates", "oil"),
    "mass": tuple(f"{i / 100:.2f}" for i in range(110, 960, 7)),
    "mmol": range(5, 90),
    "vol": range(10, 160, 5),
    "hot": range(40, 145, 5),
    "hours": range(2, 25),
    "yield": range(41, 98),
    "melt": range(52, 230),
    "ppm": tuple(f"{i / 100:.2f}" for i in range(110, 890, 3)),
    "percent": range(5, 45, 5),
    "ion": range(91, 389),
    "wave": range(10, 96),
}

ASIDES: tuple[str, ...] = (
    "gloves and goggles were worn, since {reagent} is [corrosive|toxic|highly flammable|moisture-sensitive].",
    "the apparatus was fitted with a reflux condenser, a thermometer and a dropping funnel.",
    "aliquots were withdrawn every {hours} minutes and analysed by [gas|liquid] chromatography.",
    "mass spectrometry showed the molecular ion at m/z {ion} with the expected isotope pattern.",
    "the exothermic reaction was moderated with an ice bath so that the temperature stayed below {hot} °C.",
    "a [precipitate|gel|foam|second phase] formed, which dissolved again on warming.",
    "{solvent} was distilled from [sodium|calcium hydride|phosphorus pentoxide] and stored under {gas}.",
    "the mechanism presumably involves [nucleophilic attack|proton transfer|a radical chain|a carbocation].",
    "the infrared spectrum showed a strong absorption at {ion}0 wavenumbers.",
    "elemental analysis: found C {yield}.{hours}, H {hours}.1; calculated values agree within 0.4 %.",
    "stirring was continued overnight with exclusion of [light|moisture|oxygen|air].",
    "the pH was adjusted to {hours} with [ammonia|sodium hydroxide|sulfuric acid].",
    "doubling the excess of {reagent} did not improve the [selectivity|conversion|purity].",
    "the enantiomeric excess was {yield} % as determined by chiral chromatography.",
    "the filtrate was concentrated on a rotary evaporator at {hot} °C and {vol} mbar.",
    "waste containing [mercury|chromium|halogenated solvents|cyanide] was collected separately.",
)

WORKUP: tuple[str, ...] = (
    "the mixture was cooled to [room temperature|0 °C] and [poured onto crushed ice|quenched with {wash}].",
    "the aqueous layer was extracted with {solvent} (3 × {vol2} mL).",
    "the combined organic [layers|phases|extracts] were washed with {wash} and dried over {drier}.",
    "after filtration of the {drier}, the {solvent} was removed under reduced pressure.",
    "the crude {product} was purified by [column chromatography on silica|recrystallisation from {solvent2}].",
    "the residue was distilled in vacuo to give {product} as a {hue} liquid.",
    "thin-layer chromatography showed [complete|incomplete] consumption of the {arene}.",
)
CLOSING: tuple[str, ...] = (
    "{product} was obtained as {hue} {solid} ({mass2} g, {yield} % yield), m.p. {melt} °C.",
    "the yield of {product} was {mass2} g ({yield} %) based on {arene}.",
    "1H NMR (CDCl3): {ppm} ppm (s, [2|3] H), {ppm2} ppm (m, [4|5] H); yield {yield} %.",
)

TOPICS: tuple[Topic, ...] = (
    Topic(
        opening=(
            "preparation of {product}. A [flask|three-necked flask] was charged with {arene} ({mass} g, {mmol} mmol).",
            "to a solution of {arene} ({mass} g, {mmol} mmol) in {solvent} ({vol} mL) was added {reagent}.",
            "under {gas}, {arene} ({mmol} mmol) was dissolved in dry {solvent} ({vol} mL).",
        ),
        middle=(
            "{reagent} ({mmol2} mmol) was added [dropwise|in small portions] over {hours} minutes at 0 °C.",
            "the resulting [suspension|solution|slurry] was stirred at {hot} °C for {hours} h under {gas}.",
            "vigorous evolution of [hydrogen|carbon dioxide] was observed during the addition of {reagent}.",
            "a catalytic amount of {catalyst} was introduced, and the colour changed to {hue}.",
            "the reaction was heated under reflux until the {arene} had been consumed.",
            *WORKUP,
        ),
        closing=CLOSING,
    ),
    Topic(
        opening=(
            "hydrogenation of {arene}. An autoclave was loaded with {arene} ({mass} g) and {catalyst}.",
            "the reduction of {arene} to {product} was carried out over {catalyst} in {solvent}.",
        ),
        middle=(
            "the catalyst loading was {percent} mol % with respect to {arene}.",
            "the vessel was flushed three times with {gas} and pressurised to {percent} bar of hydrogen.",
            "uptake of hydrogen ceased after {hours} h at {hot} °C.",
            "the {catalyst} was filtered off through a pad of celite and rinsed with {solvent}.",
            "caution: spent {catalyst} may ignite in air and must be kept moist.",
            *WORKUP,
        ),
        closing=CLOSING,
    ),
    Topic(
        opening=(
            "titration of {acid}. A {vol} mL aliquot of {acid} was placed in a conical flask with an indicator.",
            "the concentration of {acid} was determined by titration with standardised sodium hydroxide.",
        ),
        middle=(
            "the burette was filled with {molar} mol/L sodium hydroxide and the initial reading recorded.",
            "phenolphthalein turned from colourless to pink at the equivalence point.",
            "the buffer of {acid} and its conjugate base resists changes in pH between [3 and 5|4 and 6].",
            "three concordant titres were averaged: {vol} mL of {acid} required {titre} mL of base.",
            "the ionisation constant of {acid} at {hot} °C follows from the half-equivalence point.",
            "precipitation of the insoluble [barium|silver|calcium] salt confirmed the anion of {acid}.",
            "the pH was monitored with a glass electrode calibrated against two buffers.",
        ),
        closing=(
            "the solution of {acid} was therefore {molar2} mol/L, with a relative error of [one|two] percent.",
            "from the titre of {titre} mL the purity of {acid} was calculated as {yield} %.",
        ),
        lexicon={
            "acid": ("acetic acid", "oxalic acid", "phosphoric acid", "citric acid", "benzoic acid"),
            "molar": ("0.050", "0.100", "0.125", "0.200", "0.250", "0.500"),
            "titre": tuple(f"{i / 10:.1f}" for i in range(112, 398, 3)),
        },
    ),
    Topic(
        opening=(
            "polymerisation of {monomer}. Freshly distilled {monomer} ({vol} mL) was degassed with {gas}.",
            "radical polymerisation of {monomer} in {solvent} was initiated with {initiator} at {hot} °C.",
        ),
        middle=(
            "{initiator} ({mass} g) was dissolved in {solvent} and injected through a septum.",
            "the viscosity increased noticeably after {hours} h, and the stirrer was stopped.",
            "the polymer was precipitated in cold methanol, filtered and dried at {hot2} °C in vacuo.",
            "conversion of {monomer} reached {yield} % as judged by gas chromatography.",
            "the molar mass distribution was broad when {initiator} exceeded {percent} mol %.",
            "residual {monomer} was removed by [steam distillation|repeated precipitation].",
            "infrared bands at 17{wave} and 28{wave} wavenumbers were assigned to the [carbonyl|methylene] group.",
        ),
        closing=(
            "poly({monomer}) was isolated as a {hue} solid with a glass transition at {hot} °C.",
            "in the absence of {initiator} no conversion of {monomer} was detected.",
        ),
        lexicon={
            "monomer": ("styrene", "methyl methacrylate", "vinyl acetate", "acrylonitrile", "butadiene"),
            "initiator": ("benzoyl peroxide", "azobisisobutyronitrile", "potassium persulfate"),
        },
    ),
)


def document(rng: random.Random) -> str:
    """One synthesis, hydrogenation, titration or polymerisation procedure."""
    return compose(rng, rng.choices(TOPICS, (5, 2, 2, 2))[0], LEXICON, ASIDES, 3, 5)
