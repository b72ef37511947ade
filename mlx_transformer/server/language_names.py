"""English names of languages, by their ISO 639-1 codes."""

NAMES = dict(
    pair.split("=")
    for pair in """
    af=Afrikaans am=Amharic ar=Arabic az=Azerbaijani be=Belarusian bg=Bulgarian bn=Bengali bs=Bosnian ca=Catalan
    cs=Czech cy=Welsh da=Danish de=German el=Greek en=English eo=Esperanto es=Spanish et=Estonian eu=Basque
    fa=Persian fi=Finnish fr=French ga=Irish gl=Galician gu=Gujarati ha=Hausa he=Hebrew hi=Hindi hr=Croatian
    ht=Haitian hu=Hungarian hy=Armenian id=Indonesian is=Icelandic it=Italian ja=Japanese ka=Georgian kk=Kazakh
    km=Khmer kn=Kannada ko=Korean lb=Luxembourgish lt=Lithuanian lv=Latvian mk=Macedonian ml=Malayalam mr=Marathi
    ms=Malay my=Burmese nl=Dutch no=Norwegian oc=Occitan pa=Punjabi pl=Polish pt=Portuguese ro=Romanian ru=Russian
    sk=Slovak sl=Slovenian sq=Albanian sr=Serbian sv=Swedish sw=Swahili ta=Tamil te=Telugu th=Thai tl=Tagalog
    tr=Turkish tt=Tatar uk=Ukrainian ur=Urdu uz=Uzbek vi=Vietnamese xh=Xhosa yo=Yoruba zh=Chinese zu=Zulu
    """.split()
)
