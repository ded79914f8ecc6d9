"""Legal text: contract clauses, statutes and judgments."""

from __future__ import annotations

import random

from latentbench_adapters.pocket.text.grammar import Lexicon, Topic, compose

LEXICON: Lexicon = {
    "party": ("Lessor", "Licensor", "Supplier", "Employer", "Lender", "Franchisor", "Contractor", "Seller"),
    "counter": (
        "Lessee",
        "Licensee",
        "Customer",
        "Employee",
        "Borrower",
        "Franchisee",
        "Principal",
        "Purchaser",
    ),
    "surname": (
        "Barrow",
        "Castell",
        "Dunmore",
        "Fairley",
        "Greaves",
        "Holloway",
        "Kemble",
        "Lockhart",
        "Merton",
    ),
    "company": (
        "Northgate Holdings",
        "Avery Shipping",
        "Stratton Mills",
        "Pelham Insurance",
        "Crown Estates",
    ),
    "object": ("Property", "Software", "Cargo", "Trademark", "Loan", "Equipment", "Vessel"),
    "state": ("State of Carlin", "Republic of Vesta", "Province of Arden", "Kingdom of Lorne"),
    "court": ("Court of Appeal", "High Court", "Supreme Court", "District Court", "Commercial Tribunal"),
    "section": range(2, 80),
    "days": range(7, 120, 7),
    "sum": tuple(f"{i},000" for i in range(5, 900, 5)),
    "year": range(1951, 2024),
    "remedy": ("damages", "an injunction", "rescission", "specific performance", "restitution"),
}

ASIDES: tuple[str, ...] = (
    "time shall be of the essence with respect to any payment of {sum} crowns.",
    "the {court} has consistently upheld this interpretation since {year}.",
    "no waiver of any breach shall be deemed a waiver of any subsequent breach.",
    "costs shall follow the event unless the {court} orders otherwise.",
    "headings are for convenience only and do not affect the construction of this instrument.",
    "the [claimant|respondent|petitioner|guarantor] reserved all rights under the [lease|charter|mortgage|bond].",
    "a certified copy of the [decree|affidavit|summons|warrant] was filed with the registrar.",
    "such [consent|approval] shall not be unreasonably withheld or delayed.",
    "pursuant to Section {section}, the tribunal may hear evidence [in camera|under oath|by deposition].",
    "the doctrine of [estoppel|privity|laches|subrogation] was pleaded in the alternative.",
    "any dispute arising hereunder shall be referred to arbitration before [one|three] arbitrators.",
    "the rule must be read together with Section {section} of the Civil Code of the {state}.",
    "interest accrues on overdue amounts at the statutory rate from the due date.",
    "it is settled law that ambiguity is construed against the drafter.",
    "the [shareholders|creditors|tenants|heirs] were entitled to be heard before the order was made.",
    "an interim order [staying|enforcing|suspending] the proceedings was made after {days} days.",
)

TOPICS: tuple[Topic, ...] = (
    Topic(
        opening=(
            'this Agreement is made between {company} (the "{party}") and {company2} (the "{counter}").',
            "article {section}. The {party} hereby grants the {counter} the right to use the {object}.",
            "whereas the {party} owns the {object} and the {counter} wishes to acquire it, "
            "the parties agree as follows.",
        ),
        middle=(
            "the {counter} shall pay the {party} the sum of {sum} crowns within {days} days of the invoice.",
            "the {party} warrants that the {object} [is|remains] free of any lien, charge or encumbrance.",
            "neither party may assign its rights under this Agreement without prior written consent.",
            "any notice under Section {section} shall be given in writing and delivered by registered post.",
            "in the event of default, the {party} may terminate this Agreement upon {days} days' notice.",
            "the {counter} shall indemnify and hold harmless the {party} against all third-party claims.",
            "liability for [indirect|consequential] loss is excluded, save in cases of gross negligence.",
            "the {counter} shall keep confidential all information concerning the {object}.",
            "if any provision is held invalid, the remaining provisions shall continue in full force.",
            "neither the {party} nor the {counter} shall be liable for delay caused by force majeure.",
        ),
        closing=(
            "this Agreement shall be governed by the laws of the {state}, and the {court} shall have jurisdiction.",
            "in witness whereof, the {party} and the {counter} have executed this Agreement.",
            "upon expiry the {counter} shall return the {object} to the {party} without undue delay.",
        ),
    ),
    Topic(
        opening=(
            "section {section}. A person who, without lawful authority, {offence} commits an offence.",
            "an Act of the {state} concerning {matter}, adopted in {year}.",
        ),
        middle=(
            "for the purposes of this Act, {matter} includes any conduct prescribed by the Minister.",
            "a person guilty of an offence under Section {section} is liable to a fine not exceeding {sum} crowns.",
            "it is a defence to prove that the accused acted with due diligence and in good faith.",
            "subsection ([1|2|3]) does not apply to a public officer acting in the execution of duty.",
            "the Minister may by regulation make further provision as to {matter}.",
            "an appeal against a decision under Section {section} lies to the {court} within {days} days.",
            "where a body corporate {offence}, every director who consented is likewise guilty.",
            "the burden of proof under Section {section} rests upon the prosecution.",
            "licences issued before {year} shall remain valid until revoked by the competent authority.",
        ),
        closing=(
            "this Act repeals the {matter} Ordinance of {year} and enters into force after {days} days.",
            "nothing in Section {section} shall prejudice the rights of third parties under the laws of the {state}.",
        ),
        lexicon={
            "offence": (
                "obstructs an inspector",
                "falsifies a public register",
                "discharges waste into a waterway",
                "conceals taxable income",
                "discloses protected data",
            ),
            "matter": ("taxation", "fisheries", "data protection", "navigation", "land registration", "public health"),
        },
    ),
    Topic(
        opening=(
            "{surname} v {company}, {court} of the {state}, {year}. The plaintiff claimed {remedy} for {tort}.",
            "in {surname} v {surname2} the {court} had to decide whether the defendant was liable for {tort}.",
        ),
        middle=(
            "the plaintiff, {surname}, alleged that the defendant had failed to exercise reasonable care.",
            "counsel for the defendant submitted that no duty was owed to {surname}.",
            "the trial judge found as a fact that the contract of {year} had been validly executed.",
            "Justice {surname3}, delivering the opinion of the court, reviewed the authorities on {tort}.",
            "the principle stated by Justice {surname3} is that {tort} requires [intent|foreseeable harm|actual loss].",
            "the evidence of the sole witness was held [inadmissible|credible|hearsay] and weighed accordingly.",
            "the limitation period of {days} days had not expired when the writ was served.",
            "the appellant further contended that {remedy} was unavailable as a matter of equity.",
            "one member of the {court} dissented, holding that the statute should be construed narrowly.",
        ),
        closing=(
            "for these reasons the appeal is [allowed|dismissed], and {surname} is awarded {remedy} with costs.",
            "held: the claim of {tort} fails, and judgment is entered against {surname} with costs.",
            "the {court} remitted the case to the lower tribunal to assess {remedy}.",
        ),
        lexicon={"tort": ("negligence", "defamation", "trespass", "nuisance", "breach of contract", "fraud")},
    ),
    Topic(
        opening=(
            "last will and testament of {surname}. I revoke all former wills and codicils made by me.",
            "by this deed the Settlor, {surname}, transfers the estate to the Trustees to be held upon trust.",
        ),
        middle=(
            "I appoint {surname2} to be the executor of my estate.",
            "I bequeath the sum of {sum} crowns to {surname3}, free of inheritance tax.",
            "the Trustees shall hold the residue for the beneficiaries in equal shares.",
            "should {surname3} predecease me, the legacy shall pass to the lawful heirs.",
            "the Trustees may invest the capital as if they were the absolute owners thereof.",
            "no Trustee shall be liable for any loss unless it arises from wilful default.",
            "the executor {surname2} shall settle all debts and funeral expenses within {days} days.",
        ),
        closing=(
            "signed by the testator {surname} in the presence of two witnesses, who attest the signature.",
            "the trust shall terminate upon the death of {surname3}, and the residue shall vest in the beneficiaries.",
        ),
    ),
)


def document(rng: random.Random) -> str:
    """One contract, statute, judgment or testament."""
    return compose(rng, rng.choices(TOPICS, (4, 3, 4, 1))[0], LEXICON, ASIDES, 3, 6)
