"""Medical text: case notes, discharge letters, trial abstracts and patient advice."""

from __future__ import annotations

import random

from latentbench_adapters.pocket.text.grammar import Lexicon, Topic, compose

LEXICON: Lexicon = {
    "sex": ("man/he/his/him", "woman/she/her/her"),
    "age": range(19, 92),
    "symptom": (
        "chest pain",
        "shortness of breath",
        "abdominal pain",
        "persistent cough",
        "fever",
        "headache",
        "dizziness",
        "palpitations",
        "nausea",
        "joint swelling",
        "blurred vision",
        "lower back pain",
    ),
    "history": (
        "hypertension",
        "type 2 diabetes",
        "asthma",
        "atrial fibrillation",
        "hypothyroidism",
        "migraine",
        "gout",
    ),
    "disease": (
        "pneumonia",
        "myocardial infarction",
        "appendicitis",
        "pulmonary embolism",
        "heart failure",
        "sepsis",
        "acute pancreatitis",
        "deep vein thrombosis",
        "pyelonephritis",
        "rheumatoid arthritis",
    ),
    "drug": (
        "amoxicillin",
        "metformin",
        "lisinopril",
        "warfarin",
        "prednisolone",
        "furosemide",
        "paracetamol",
        "atorvastatin",
        "bisoprolol",
        "omeprazole",
        "heparin",
        "salbutamol",
    ),
    "imaging": (
        "chest radiograph",
        "abdominal ultrasound",
        "computed tomography",
        "echocardiogram",
        "MRI scan",
    ),
    "finding": (
        "a consolidation in the left lower lobe",
        "no acute abnormality",
        "a small pleural effusion",
        "thickening of the wall",
        "a reduced ejection fraction",
        "a filling defect",
    ),
    "ward": ("cardiology", "surgery", "neurology", "internal medicine", "the intensive care unit"),
    "dose": range(5, 500, 5),
    "pulse": range(54, 132),
    "systolic": range(92, 190, 2),
    "days": range(2, 22),
    "sat": range(84, 100),
    "lab": (
        "haemoglobin",
        "creatinine",
        "troponin",
        "C-reactive protein",
        "serum potassium",
        "white cell count",
    ),
    "dosing": (
        "once daily",
        "twice daily",
        "three times a day",
        "intravenously every eight hours",
        "at bedtime",
    ),
}

ASIDES: tuple[str, ...] = (
    "informed consent was obtained, and the ethics committee approved the [procedure|protocol|report].",
    "family history was [notable|negative] for [stroke|colon cancer|coronary disease|epilepsy|haemophilia].",
    "oxygen saturation was {sat} % on room air, and the respiratory rate was {days} per minute.",
    "the electrocardiogram showed [sinus rhythm|ST elevation|left bundle branch block|prolonged repolarisation].",
    "blood cultures grew [Escherichia coli|Staphylococcus aureus|Klebsiella] sensitive to {drug}.",
    "there was no [oedema|jaundice|cyanosis|lymphadenopathy|clubbing] on inspection.",
    "the prevalence of {history} increases with age, obesity and smoking.",
    "pathophysiologically, {disease} involves [inflammation|ischaemia|thrombosis|infection|fibrosis] of the tissue.",
    "the differential diagnosis included {disease} and [anxiety|malignancy|viral gastroenteritis|anaemia].",
    "renal and hepatic function should be checked before {drug} is prescribed.",
    "a [lumbar puncture|bone marrow biopsy|colonoscopy|bronchoscopy|spirometry] was [performed|postponed].",
    "vaccination against [influenza|pneumococcus|hepatitis B|tetanus] was recommended.",
    "neurological examination revealed [intact reflexes|mild weakness|normal gait|reduced sensation].",
    "dehydration was corrected with intravenous saline, {dose} mL per hour.",
    "physiotherapy and dietary counselling were arranged by the nursing staff.",
    "the [radiologist|consultant|anaesthetist|paramedic|pharmacist] recommended {imaging} within {days} days.",
)

TOPICS: tuple[Topic, ...] = (
    Topic(
        opening=(
            "a {age}-year-old {sex} presented to the emergency department with {symptom} for {days} days.",
            "a {age}-year-old {sex} with a history of {history} was admitted to {ward} because of {symptom}.",
        ),
        middle=(
            "{sex.1} also reported {symptom2} and denied any allergies.",
            "the past medical history included {history}, treated with {drug} {dose} mg {dosing}.",
            "on examination {sex.1} was [pale|alert|febrile|in mild distress], with a pulse of {pulse} per minute.",
            "blood pressure was {systolic} mmHg systolic, and auscultation revealed [crackles|a murmur|clear lungs].",
            "laboratory tests showed [elevated|low|normal] {lab} and [elevated|normal] {lab2}.",
            "the {imaging} demonstrated {finding}, consistent with {disease}.",
            "a diagnosis of {disease} was made, and {drug2} {dose2} mg was started {dosing2}.",
            "because of the {history}, the dose of {drug} was reduced during treatment with {drug2}.",
            "the {symptom} resolved within {days2} days of starting {drug2}.",
            "{sex.2} {lab} returned to normal, and a repeat {imaging} was unremarkable.",
        ),
        closing=(
            "{sex.1} was discharged home on {drug2}, with follow-up in {days2} days.",
            "the patient recovered from {disease}, and {sex.2} {symptom} has not returned.",
        ),
    ),
    Topic(
        opening=(
            "background: the benefit of {drug} in patients with {disease} is uncertain.",
            "objective: to compare {drug} with {drug2} in adults with {disease} and {history}.",
        ),
        middle=(
            "methods: in this randomised, double-blind trial, {count} patients received {drug} {dose} mg {dosing}.",
            "participants with {history} were [excluded|stratified] at baseline.",
            "the primary endpoint was death or readmission for {disease} within {weeks} weeks.",
            "secondary outcomes included {symptom}, {lab} and quality of life.",
            "results: the endpoint occurred in {percent} % of the {drug} group and {percent2} % of the placebo group.",
            "the hazard ratio was 0.{percent} with a 95 % confidence interval that [excluded|included] unity.",
            "{symptom} was the most frequent adverse event among patients who received {drug}.",
            "median follow-up was {weeks} weeks, and adherence to {drug} was [high|moderate|poor].",
            "a subgroup analysis of patients with {history} gave similar estimates.",
        ),
        closing=(
            "conclusion: {drug} [reduced|did not reduce] mortality in patients with {disease}.",
            "conclusion: among adults with {disease}, {drug} was [superior|not inferior] to standard care.",
        ),
        lexicon={"count": range(120, 4800, 20), "weeks": range(4, 104, 4), "percent": range(11, 89)},
    ),
    Topic(
        opening=(
            "operation note: {operation} under [general|spinal|local] anaesthesia in a {age}-year-old {sex}.",
            "the patient, a {age}-year-old {sex}, underwent elective {operation} on the [left|right] side.",
        ),
        middle=(
            "the skin was disinfected and draped, and a [midline|transverse|small] incision was made.",
            "the [artery|duct|nerve|vein] was identified, ligated and divided.",
            "intraoperatively there was {finding}, and a tissue sample was sent for histology.",
            "haemostasis was achieved with diathermy, and blood loss was {dose} mL.",
            "prophylactic {drug} was given before the incision, as {sex.1} has {history}.",
            "the wound was closed in layers with absorbable sutures, and a drain was left in place.",
            "postoperatively {sex.1} received {drug2} for analgesia and was transferred to {ward}.",
            "on day {days} after {operation} the drain was removed and {sex.1} tolerated a light diet.",
        ),
        closing=(
            "there were no complications of the {operation}, and {sex.1} was mobilised by physiotherapists.",
            "histology after {operation} showed [chronic inflammation|a benign tumour|no malignancy].",
        ),
        lexicon={
            "operation": (
                "cholecystectomy",
                "hernia repair",
                "hip replacement",
                "thyroidectomy",
                "appendectomy",
                "coronary bypass",
            )
        },
    ),
    Topic(
        opening=(
            "{drug} tablets contain {dose} mg and are taken {dosing} for {disease}.",
            "patient information: your doctor has prescribed {drug} because of your {disease}.",
        ),
        middle=(
            "swallow {drug} with water, preferably [before|after] meals, and do not chew it.",
            "tell your doctor if you have {history} or if you are taking {drug2}.",
            "common side effects of {drug} are {symptom} and {symptom2}.",
            "stop taking {drug} and seek medical help if you develop {symptom3} or a rash.",
            "the combination of {drug} and {drug2} increases the risk of [bleeding|low blood sugar|drowsiness].",
            "your kidney function and {lab} will be monitored every {days} weeks.",
            "do not take {drug} during pregnancy or breastfeeding without medical advice.",
            "if you miss a dose of {drug}, take it as soon as you remember, but never double it.",
        ),
        closing=(
            "treatment with {drug} usually lasts {days2} days; do not stop it even if the {symptom} improves.",
            "keep {drug} out of the reach of children and below 25 degrees.",
        ),
    ),
)


def document(rng: random.Random) -> str:
    """One case note, trial abstract, operation note or patient leaflet."""
    return compose(rng, rng.choices(TOPICS, (4, 3, 2, 2))[0], LEXICON, ASIDES, 3, 6)
