"""English-French sentences from templates: what people ask for first, and corpora of sentences lack.

Bookings, times, prices, dates, names, greetings and short everyday phrases, drawn from a seed.
"""

import random
from collections.abc import Iterator

# Values of slots, (English, French). M and F are the genders of the French words, which templates agree with.
NAMES_M = (
    "Tom David Paul Lucas Hugo Marc Ali Omar Peter James Daniel Antoine Karim Ivan Leo Samir Nicolas Kevin".split()
)
NAMES_F = "Mary Anna Julie Sara Emma Claire Lea Fatima Olga Nina Alice Laura Ines Chloe Sophie Eva Mei Amina".split()
SURNAMES = (
    "Smith Martin Dubois Johnson Nguyen Garcia Rossi Kowalski Okafor Tanaka Muller Lefevre Petrov Diallo Brown Haddad "
    "Silva Moreau Singh Novak Larsen Bernard Jones Cohen"
).split()
CITIES = "Paris Lyon Boston Berlin Tokyo Madrid Dakar Oslo Toronto Nice Lille Chicago Sydney Bordeaux Prague".split()
MONTHS = {
    "January": "janvier", "February": "février", "March": "mars", "April": "avril", "May": "mai", "June": "juin",
    "July": "juillet", "August": "août", "September": "septembre", "October": "octobre", "November": "novembre",
    "December": "décembre",
}  # fmt: skip
DAYS = {
    "Monday": "lundi", "Tuesday": "mardi", "Wednesday": "mercredi", "Thursday": "jeudi", "Friday": "vendredi",
    "Saturday": "samedi", "Sunday": "dimanche",
}  # fmt: skip
WORDS_FOR_NUMBERS = {
    2: ("two", "deux"), 3: ("three", "trois"), 4: ("four", "quatre"), 5: ("five", "cinq"), 6: ("six", "six"),
    7: ("seven", "sept"), 8: ("eight", "huit"), 9: ("nine", "neuf"), 10: ("ten", "dix"),
}  # fmt: skip
TIMES = [
    ("today", "aujourd'hui"), ("tomorrow", "demain"), ("tonight", "ce soir"), ("tomorrow evening", "demain soir"),
    ("tomorrow morning", "demain matin"), ("this weekend", "ce week-end"), ("next week", "la semaine prochaine"),
    ("this afternoon", "cet après-midi"), ("tomorrow night", "demain soir"), ("next month", "le mois prochain"),
]  # fmt: skip
THINGS_M = [
    ("coffee", "café"), ("sandwich", "sandwich"), ("ticket", "billet"), ("book", "livre"), ("phone", "téléphone"),
    ("computer", "ordinateur"), ("hat", "chapeau"), ("bag", "sac"), ("coat", "manteau"), ("bike", "vélo"),
    ("cake", "gâteau"), ("tea", "thé"), ("passport", "passeport"), ("umbrella", "parapluie"), ("suitcase", "bagage"),
]  # fmt: skip
THINGS_F = [
    ("room", "chambre"), ("car", "voiture"), ("table", "table"), ("shirt", "chemise"), ("watch", "montre"),
    ("key", "clé"), ("beer", "bière"), ("pizza", "pizza"), ("map", "carte"), ("dress", "robe"), ("bottle", "bouteille"),
    ("lamp", "lampe"), ("chair", "chaise"), ("jacket", "veste"),
]  # fmt: skip
PLACES = [
    ("the station", "la gare"), ("the bathroom", "les toilettes", True), ("the airport", "l'aéroport"),
    ("the hotel", "l'hôtel"), ("the museum", "le musée"), ("the bank", "la banque"), ("the hospital", "l'hôpital"),
    ("the pharmacy", "la pharmacie"), ("the supermarket", "le supermarché"), ("the beach", "la plage"),
    ("the post office", "la poste"), ("the bus stop", "l'arrêt de bus"), ("the exit", "la sortie"),
    ("the police station", "le commissariat"), ("the school", "l'école"), ("the library", "la bibliothèque"),
    ("the restaurant", "le restaurant"), ("the swimming pool", "la piscine"), ("the entrance", "l'entrée"),
]  # fmt: skip
FIXED = [
    ("Hello", "Bonjour"), ("Hello.", "Bonjour."), ("Hello!", "Bonjour !"), ("Hi", "Salut"), ("Hi!", "Salut !"),
    ("Hi there!", "Salut !"), ("Good morning", "Bonjour"), ("Good morning!", "Bonjour !"),
    ("Good evening", "Bonsoir"), ("Good evening!", "Bonsoir !"), ("Good night", "Bonne nuit"),
    ("Good night!", "Bonne nuit !"), ("Bye", "Au revoir"), ("Bye!", "Au revoir !"), ("Goodbye", "Au revoir"),
    ("Goodbye!", "Au revoir !"), ("See you soon!", "À bientôt !"), ("See you later!", "À plus tard !"),
    ("See you tomorrow!", "À demain !"), ("Thank you", "Merci"), ("Thank you!", "Merci !"), ("Thanks", "Merci"),
    ("Thanks!", "Merci !"), ("Thanks a lot!", "Merci beaucoup !"), ("Thank you very much.", "Merci beaucoup."),
    ("You're welcome.", "De rien."), ("You're welcome!", "De rien !"), ("Please", "S'il vous plaît"),
    ("Please.", "S'il vous plaît."), ("Yes", "Oui"), ("Yes.", "Oui."), ("Yes!", "Oui !"), ("No", "Non"),
    ("No.", "Non."), ("No!", "Non !"), ("Yes, please.", "Oui, s'il vous plaît."), ("No, thank you.", "Non, merci."),
    ("No thanks.", "Non merci."), ("Maybe", "Peut-être"), ("Maybe.", "Peut-être."), ("OK", "D'accord"),
    ("OK.", "D'accord."), ("Okay", "D'accord"), ("Of course!", "Bien sûr !"), ("Sorry", "Désolé"),
    ("Sorry!", "Désolé !"), ("I'm sorry.", "Je suis désolé."), ("Excuse me", "Excusez-moi"),
    ("Excuse me!", "Excusez-moi !"), ("Help!", "À l'aide !"), ("Welcome", "Bienvenue"), ("Welcome!", "Bienvenue !"),
    ("Cheers!", "Santé !"), ("Congratulations!", "Félicitations !"), ("Happy birthday!", "Joyeux anniversaire !"),
    ("Merry Christmas!", "Joyeux Noël !"), ("Happy New Year!", "Bonne année !"), ("Good luck!", "Bonne chance !"),
    ("Enjoy your meal!", "Bon appétit !"), ("Have a nice day!", "Bonne journée !"),
    ("Have a good evening!", "Bonne soirée !"), ("How are you?", "Comment allez-vous ?"),
    ("How are you doing?", "Comment ça va ?"), ("I'm fine, thank you.", "Je vais bien, merci."),
    ("I am fine, and you?", "Je vais bien, et vous ?"), ("What's up?", "Quoi de neuf ?"),
    ("What is your name?", "Comment vous appelez-vous ?"), ("Nice to meet you.", "Enchanté de vous rencontrer."),
    ("Where are you from?", "D'où venez-vous ?"), ("Do you speak English?", "Parlez-vous anglais ?"),
    ("I don't speak French.", "Je ne parle pas français."), ("I don't understand.", "Je ne comprends pas."),
    ("Can you repeat that, please?", "Pouvez-vous répéter, s'il vous plaît ?"),
    ("Could you speak more slowly?", "Pourriez-vous parler plus lentement ?"),
    ("How much does it cost?", "Combien ça coûte ?"), ("How much is it?", "C'est combien ?"),
    ("What time is it?", "Quelle heure est-il ?"), ("I love you", "Je t'aime"), ("I love you.", "Je t'aime."),
    ("I love you!", "Je t'aime !"), ("I miss you.", "Tu me manques."), ("Leave me alone!", "Laissez-moi tranquille !"),
    ("I am hungry.", "J'ai faim."), ("I'm thirsty.", "J'ai soif."), ("I'm tired.", "Je suis fatigué."),
    ("I'm lost.", "Je suis perdu."), ("I need a doctor.", "J'ai besoin d'un médecin."),
    ("Call the police!", "Appelez la police !"), ("Call an ambulance!", "Appelez une ambulance !"),
    ("The bill, please.", "L'addition, s'il vous plaît."), ("Can I pay by card?", "Puis-je payer par carte ?"),
    ("Do you accept credit cards?", "Acceptez-vous les cartes de crédit ?"),
    ("Is breakfast included?", "Le petit-déjeuner est-il compris ?"),
    ("What is the Wi-Fi password?", "Quel est le mot de passe du Wi-Fi ?"),
    ("The quick brown fox jumps over the lazy dog.", "Le rapide renard brun saute par-dessus le chien paresseux."),
    ("This is a test.", "Ceci est un test."), ("Test", "Test"), ("Test.", "Test."),
    ("Hello, world!", "Bonjour, le monde !"), ("Hello world", "Bonjour le monde"),
    ("I don't know.", "Je ne sais pas."), ("I think so.", "Je pense que oui."), ("Me too.", "Moi aussi."),
    ("Let's go!", "Allons-y !"), ("Come in!", "Entrez !"), ("Wait!", "Attendez !"), ("Stop!", "Arrêtez !"),
    ("Be careful!", "Faites attention !"), ("Don't worry.", "Ne vous inquiétez pas."), ("It's OK.", "C'est bon."),
    ("No problem.", "Pas de problème."), ("It doesn't matter.", "Ce n'est pas grave."),
]  # fmt: skip


def template_pairs(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield `count` pairs from templates, and the fixed phrases several times among them."""
    generator = random.Random(seed)
    for number in range(count):
        if number % 6 == 0:
            yield generator.choice(FIXED)
        else:
            yield generator.choice(TEMPLATES)(generator)


def clock(g: random.Random) -> tuple[str, str]:
    """Return a time of day in both languages."""
    hour, minute = g.randrange(24), g.choice([0, 0, 0, 15, 30, 30, 45, g.randrange(60)])
    twelve = hour % 12 or 12
    half = "a.m." if hour < 12 else "p.m."
    french = f"{hour} h" if minute == 0 else f"{hour} h {minute:02}"
    if g.random() < 0.4:
        return f"{hour}:{minute:02}", f"{hour} h {minute:02}" if minute else f"{hour} h"
    english = f"{twelve} {half}" if minute == 0 else f"{twelve}:{minute:02} {half}"
    return english, french


def price(g: random.Random) -> tuple[str, str]:
    """Return an amount of money in both languages."""
    unit = g.choice([("euros", "euros"), ("dollars", "dollars"), ("pounds", "livres"), ("francs", "francs")])
    kind = g.random()
    if kind < 0.4:
        whole, cents = g.randrange(2, 200), g.randrange(1, 100)
        return f"{whole}.{cents:02} {unit[0]}", f"{whole},{cents:02} {unit[1]}"
    if kind < 0.6:
        thousands, rest = g.randrange(1, 90), g.randrange(1000)
        return f"{thousands},{rest:03} {unit[0]}", f"{thousands} {rest:03} {unit[1]}"
    if kind < 0.75:
        symbol = g.choice([("€", "€"), ("$", "$")])
        whole, cents = g.randrange(2, 200), g.randrange(100)
        return f"{symbol[0]}{whole}.{cents:02}", f"{whole},{cents:02} {symbol[1]}"
    number = g.randrange(2, 1000)
    return f"{number} {unit[0]}", f"{number} {unit[1]}"


def date(g: random.Random) -> tuple[str, str]:
    """Return a date in both languages, without the article."""
    month = g.choice(list(MONTHS))
    day = g.randrange(1, 29)
    ordinal = "1er" if day == 1 else str(day)
    ending = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")
    english = g.choice([f"{month} {day}", f"{month} {day}{ending}", f"the {day}{ending} of {month}"])
    year = f"{g.randrange(1900, 2040)}"
    if g.random() < 0.3 and not english.startswith("the"):
        return f"{english}, {year}", f"{ordinal} {MONTHS[month]} {year}"
    return english, f"{ordinal} {MONTHS[month]}"


def amount(g: random.Random, low: int = 2, high: int = 10) -> tuple[str, str]:
    """Return a small number, as a word or in digits, in both languages."""
    number = g.randrange(low, high + 1)
    return WORDS_FOR_NUMBERS[number] if number in WORDS_FOR_NUMBERS and g.random() < 0.6 else (str(number), str(number))


def name(g: random.Random) -> str:
    """Return a person's name."""
    first = g.choice(NAMES_M + NAMES_F)
    return f"{first} {g.choice(SURNAMES)}" if g.random() < 0.6 else first


def of(text: str) -> str:
    """Return a French name after "de"."""
    return f"d'{text}" if text[0] in "AEIOU" else f"de {text}"


def when(g: random.Random) -> tuple[str, str]:
    """Return a time for a booking in both languages."""
    kind = g.random()
    if kind < 0.4:
        return g.choice(TIMES)
    if kind < 0.6:
        day = g.choice(list(DAYS))
        return g.choice([(f"on {day}", DAYS[day]), (f"next {day}", f"{DAYS[day]} prochain")])
    if kind < 0.8:
        english, french = date(g)
        return f"on {english}", f"le {french}"
    english, french = clock(g)
    (day_en, day_fr) = g.choice(TIMES)
    return f"{day_en} at {english}", f"{day_fr} à {french}"


def booking(g: random.Random) -> tuple[str, str]:
    """Return a request for a table or a room."""
    (en, fr), (count_en, count_fr) = when(g), amount(g)
    start_en, start_fr = g.choice([
        ("I would like to book", "Je voudrais réserver"), ("I'd like to book", "J'aimerais réserver"),
        ("I want to reserve", "Je veux réserver"), ("We would like to reserve", "Nous voudrions réserver"),
        ("Can I book", "Puis-je réserver"), ("Could we book", "Pourrions-nous réserver"),
    ])  # fmt: skip
    what_en, what_fr = g.choice([
        (f"a table for {count_en} people", f"une table pour {count_fr} personnes"),
        (f"a table for {count_en}", f"une table pour {count_fr}"),
        (f"a room for {count_en} nights", f"une chambre pour {count_fr} nuits"),
        ("a single room", "une chambre simple"), ("a double room", "une chambre double"),
        (f"{count_en} tickets to {(city := g.choice(CITIES))}", f"{count_fr} billets pour {city}"),
        (f"a flight to {(city := g.choice(CITIES))}", f"un vol pour {city}"),
        ("a taxi", "un taxi"), ("an appointment", "un rendez-vous"),
    ])  # fmt: skip
    please_en, please_fr = g.choice([("", ""), ("", ""), (", please", ", s'il vous plaît")])
    end_en, end_fr = ("?", " ?") if start_en.startswith("C") else (".", ".")
    english = f"{start_en} {what_en} {en}{please_en}{end_en}".replace("m..", "m.")
    return english, f"{start_fr} {what_fr} {fr}{please_fr}{end_fr}"


def schedule(g: random.Random) -> tuple[str, str]:
    """Return a sentence about when something happens."""
    en, fr = clock(g)
    subject_en, subject_fr = g.choice([
        ("The train leaves", "Le train part"), ("The meeting starts", "La réunion commence"),
        ("The bus arrives", "Le bus arrive"), ("The shop opens", "Le magasin ouvre"),
        ("The flight departs", "Le vol part"), ("Breakfast is served", "Le petit-déjeuner est servi"),
        ("The museum closes", "Le musée ferme"), ("My plane lands", "Mon avion atterrit"),
        ("The film begins", "Le film commence"), ("We are meeting", "Nous nous retrouvons"),
        ("Let's meet", "Retrouvons-nous"), ("I get up", "Je me lève"), ("She finishes work", "Elle finit le travail"),
    ])  # fmt: skip
    extra_en, extra_fr = g.choice([("", ""), ("", ""), (day := g.choice(TIMES))])
    return f"{subject_en} at {en}{' ' + extra_en if extra_en else ''}.".replace("..", "."), (
        f"{subject_fr} à {fr}{' ' + extra_fr if extra_fr else ''}."
    )


def cost(g: random.Random) -> tuple[str, str]:
    """Return a sentence about a price."""
    en, fr = price(g)
    gender = g.random() < 0.5
    thing_en, thing_fr = g.choice(THINGS_M if gender else THINGS_F)
    vowel = thing_fr[0] in "aeiouhé"
    this_fr = ("cet" if vowel else "ce") if gender else "cette"
    the_fr = "l'" if vowel else ("le " if gender else "la ")
    return g.choice([
        (f"This {thing_en} costs {en}.", f"{this_fr.capitalize()} {thing_fr} coûte {fr}."),
        (f"The {thing_en} costs {en}.", f"{the_fr.capitalize()}{thing_fr} coûte {fr}."),
        (f"I paid {en} for this {thing_en}.", f"J'ai payé {fr} pour {this_fr} {thing_fr}."),
        (f"It costs {en}.", f"Ça coûte {fr}."),
        (f"That will be {en}, please.", f"Cela fera {fr}, s'il vous plaît."),
        (f"I only have {en}.", f"Je n'ai que {fr}."),
        (f"Can you lend me {en}?", f"Peux-tu me prêter {fr} ?"),
        (f"How much is this {thing_en}?", f"Combien coûte {this_fr} {thing_fr} ?"),
    ])  # fmt: skip


def event(g: random.Random) -> tuple[str, str]:
    """Return a sentence about a date."""
    en, fr = date(g)
    return g.choice([
        (f"My birthday is on {en}.", f"Mon anniversaire est le {fr}."),
        (f"I was born on {en}.", f"Je suis né le {fr}."),
        (f"The meeting is on {en}.", f"La réunion est le {fr}."),
        (f"We arrive on {en}.", f"Nous arrivons le {fr}."),
        (f"They got married on {en}.", f"Ils se sont mariés le {fr}."),
        (f"The contract ends on {en}.", f"Le contrat se termine le {fr}."),
        (f"Our holidays start on {en}.", f"Nos vacances commencent le {fr}."),
    ])  # fmt: skip


def person(g: random.Random) -> tuple[str, str]:
    """Return a sentence with a name or an address."""
    who = name(g)
    city = g.choice(CITIES)
    domain = f"{g.choice(['example', 'mail', 'post', 'work'])}.{g.choice(['com', 'org', 'fr'])}"
    mail = f"{who.lower().replace(' ', '.')}@{domain}"
    phone = g.choice([f"555-{g.randrange(1000, 10000)}", " ".join(f"{g.randrange(100):02}" for _ in range(5))])
    age = g.randrange(2, 100)
    return g.choice([
        (f"My name is {who}.", f"Je m'appelle {who}."), (f"I am {who}.", f"Je suis {who}."),
        (f"This is my friend {who}.", f"Voici mon ami {who}."), (f"Hello, {who}!", f"Bonjour, {who} !"),
        (f"Hi {who}, how are you?", f"Salut {who}, comment vas-tu ?"), (f"Where is {who}?", f"Où est {who} ?"),
        (f"Thank you, {who}.", f"Merci, {who}."), (f"{who} lives in {city}.", f"{who} habite à {city}."),
        (f"{who} called you this morning.", f"{who} t'a appelé ce matin."),
        (f"Do you know {who}?", f"Connaissez-vous {who} ?"), (f"{who} is {age} years old.", f"{who} a {age} ans."),
        (f"I am {age} years old.", f"J'ai {age} ans."), (f"I live in {city}.", f"J'habite à {city}."),
        (f"I come from {city}.", f"Je viens {of(city)}."), (f"How do I get to {city}?", f"Comment aller à {city} ?"),
        (f"My phone number is {phone}.", f"Mon numéro de téléphone est le {phone}."),
        (f"Please call me at {phone}.", f"Veuillez m'appeler au {phone}."),
        (f"My email address is {mail}.", f"Mon adresse e-mail est {mail}."),
        (f"Send an email to {mail}.", f"Envoyez un e-mail à {mail}."),
        (f"You can reach {who} at {mail}.", f"Vous pouvez joindre {who} à l'adresse {mail}."),
        (f"I have a reservation under the name {who}.", f"J'ai une réservation au nom {of(who)}."),
    ])  # fmt: skip


def place(g: random.Random) -> tuple[str, str]:
    """Return a question about a place."""
    place_en, place_fr, *plural = g.choice(PLACES)
    is_fr = "sont" if plural else "est"
    return g.choice([
        (f"Where is {place_en}?", f"Où {is_fr} {place_fr} ?"),
        (f"Excuse me, where is {place_en}?", f"Excusez-moi, où {is_fr} {place_fr} ?"),
        (f"Can you tell me where {place_en} is?", f"Pouvez-vous me dire où {is_fr} {place_fr} ?"),
        (f"I'm looking for {place_en}.", f"Je cherche {place_fr}."),
        (f"I am going to {place_en}.", f"Je vais à {place_fr}.".replace("à le ", "au ").replace("à les ", "aux ")),
    ])  # fmt: skip


def wish(g: random.Random) -> tuple[str, str]:
    """Return a request for a thing."""
    gender = g.random() < 0.5
    thing_en, thing_fr = g.choice(THINGS_M if gender else THINGS_F)
    article_en = "an" if thing_en[0] in "aeiou" else "a"
    article_fr = "un" if gender else "une"
    my_fr = "mon" if gender or thing_fr[0] in "aeiouhé" else "ma"
    count_en, count_fr = amount(g)
    return g.choice([
        (f"I would like {article_en} {thing_en}, please.", f"Je voudrais {article_fr} {thing_fr}, s'il vous plaît."),
        (f"Can I have {article_en} {thing_en}?", f"Puis-je avoir {article_fr} {thing_fr} ?"),
        (f"I lost my {thing_en}.", f"J'ai perdu {my_fr} {thing_fr}."),
        (f"I need {article_en} {thing_en}.", f"J'ai besoin d'{article_fr} {thing_fr}."),
        (f"I can't find my {thing_en}.", f"Je ne trouve pas {my_fr} {thing_fr}."),
        (f"I am waiting for {count_en} hours.", f"J'attends depuis {count_fr} heures."),
        (f"There are {count_en} people in the room.", f"Il y a {count_fr} personnes dans la pièce."),
    ])  # fmt: skip


TEMPLATES = (booking, booking, schedule, cost, cost, event, person, person, place, wish)
