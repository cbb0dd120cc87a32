"""Hold the words of the demo's reviews: what is praised and blamed, in five kinds of things.

Words stand in pools, parted by `|`. What comes after `||` is held out: it is met in the validation rows only.
Pools named `good ...` and `bad ...` are counterparts; every word of theirs also appears with the other label
(negated, conceded, somebody else's), so that a word alone says little.
"""

from __future__ import annotations

DOMAINS = ("film", "restaurant", "phone", "hotel", "book")

# Words every kind of thing shares. "quality" is said of a part or of the whole.
SHARED = {
    "good quality": "superb | wonderful | excellent | brilliant | terrific | fantastic | outstanding"
    " | splendid | great | impressive | first-rate | lovely | marvellous || magnificent | exquisite"
    " | delightful | stunning",
    "bad quality": "awful | terrible | dreadful | poor | lousy | disappointing | atrocious | horrible"
    " | appalling | hopeless | second-rate | miserable | shoddy || abysmal | dismal | pathetic | woeful",
    "good better": "better",
    "bad better": "worse",
    "good fate": "spoil it | ruin it",
    "bad fate": "rescue it | save it",
    "good hope": "feared | dreaded || braced myself for",
    "bad hope": "hoped for | looked forward to || longed for",
    "good talk": "had nothing but praise for it | raved about it | adored it || could not stop praising it",
    "bad talk": "had nothing good to say about it | sneered at it | hated it || complained about it for days",
    "good tone": "lovely | wonderful | great | terrific || delightful | glorious",
    "bad tone": "awful | terrible | dreadful | miserable || dismal | ghastly",
    "very": "truly | utterly | simply | absolutely | really || thoroughly | totally",
    "person": "my brother | my sister | my neighbour | a colleague | my husband | an old friend"
    " || my cousin | my boss | my flatmate",
    "people": "the critics | most people | my friends | other reviewers || some of my colleagues | people online",
}

# Words of one kind of thing. "be" is "was" where a review looks back at one visit.
BY_DOMAIN: dict[str, dict[str, str]] = {
    "film": {
        "thing": "the film | this film | the movie || the picture",
        "kind": "film | movie",
        "other": "the original | the first part | the director's last film || the sequel",
        "be": "is",
        "has": "has",
        "can hardly be": "could hardly be",
        "make": "makes",
        "visit": "I saw it last night | I watched it on Friday | I saw it with my parents"
        " || I caught it at the weekend",
        "have met": "have seen",
        "a while": "ten minutes | half an hour || a quarter of an hour",
        "aspect": "acting | photography | music | script | dialogue | editing | opening scene"
        " || costume design | soundtrack | lighting",
        "good trait": "gripping | moving | funny | clever | charming | original | inventive | entertaining"
        " || exciting | captivating | touching",
        "bad trait": "dull | tedious | predictable | clumsy | lifeless | pretentious | boring"
        " | forgettable || silly | annoying | messy",
        "good noun": "a masterpiece | a triumph | a gem | a joy | a treat | a delight || a success | a little miracle",
        "bad noun": "a mess | a disaster | a bore | a chore | a dud | a waste of time || a fiasco | a shambles",
        "good claim": "it comes alive from the first scene | it never loses its grip"
        " | every scene earns its place | it never puts a foot wrong || it stays with you for days"
        " | everything in it rings true",
        "bad claim": "it never comes alive | it falls apart halfway through | it goes nowhere"
        " | it drags from start to finish || nothing in it rings true"
        " | it runs out of ideas in ten minutes",
        "good act": "loved every minute of it | left the cinema smiling | was gripped to the end"
        " | was sorry when it ended || came out walking on air | wanted to see it again at once",
        "bad act": "nearly walked out | fell asleep before the end | wanted a refund"
        " | was bored within ten minutes | could not wait for it to end || regretted buying a ticket"
        " | hated every minute of it",
        "good plot": "the wedding of two people in love | a brilliant young doctor"
        " | a wonderful summer in Italy || a happy family by the sea",
        "bad plot": "a terrible war | a miserable old man | a dreadful crime || a horrible shipwreck",
    },
    "restaurant": {
        "thing": "the meal | the food | our dinner || the lunch",
        "kind": "meal | dinner",
        "other": "our last meal out | the dinner next door | last year's dinner || the canteen lunch",
        "be": "was",
        "has": "had",
        "can hardly be": "could hardly have been",
        "make": "made",
        "visit": "I ate there on Friday | I had dinner there last week | I went for the set menu"
        " || I took a table by the window",
        "have met": "have eaten",
        "a while": "one course | the first few bites || the first half",
        "aspect": "soup | dessert | wine list | service | bread | coffee | starter || main course"
        " | atmosphere | cheese board",
        "good trait": "delicious | fresh | tasty | generous | satisfying | memorable | imaginative"
        " | subtle | appetising || flavourful | mouth-watering | well cooked",
        "bad trait": "bland | greasy | stale | overpriced | tasteless | overcooked | soggy | stingy"
        " | unappetising || burnt | rubbery | cold",
        "good noun": "a feast | a treat | a delight | a triumph | a joy | a bargain || a revelation | a pleasure",
        "bad noun": "a disaster | a letdown | an ordeal | a rip-off | a waste of money | a disgrace"
        " || a fiasco | a failure",
        "good claim": "every dish was a pleasure | the kitchen never put a foot wrong"
        " | it was worth every penny | every plate went back empty || it tasted as good as it looked"
        " | there was love in every bite",
        "bad claim": "every dish was a trial | the kitchen got everything wrong | it was not worth a penny"
        " | most plates went back full || it tasted like cardboard | nothing came out hot",
        "good act": "loved every bite | went home happy | booked again for the following week"
        " | left a big tip | asked for seconds || asked for the recipe | was in heaven",
        "bad act": "left most of it on the plate | sent the main course back | asked for a refund"
        " | regretted every bite | went home hungry || left in disgust | felt ill afterwards",
        "good plot": "a loud and happy wedding | somebody's wonderful promotion || a joyful birthday",
        "bad plot": "a terrible family quarrel | somebody's horrible divorce || a bitter argument",
    },
    "phone": {
        "thing": "the phone | this phone || the handset",
        "kind": "phone",
        "other": "my old phone | the previous model | my sister's phone || the phone I had before",
        "be": "is",
        "has": "has",
        "can hardly be": "could hardly be",
        "make": "makes",
        "visit": "I bought it last month | I have used it since May | I got it for my birthday"
        " || I ordered it in the sales",
        "have met": "have owned",
        "a while": "a week | a day or two || a fortnight",
        "aspect": "camera | screen | battery life | speaker | keyboard | design | sound quality"
        " || packaging | build quality | charger",
        "good trait": "fast | reliable | sturdy | responsive | intuitive | sleek | durable | practical"
        " | dependable || convenient | robust | handy",
        "bad trait": "sluggish | flimsy | unreliable | clunky | awkward | fragile | slow | buggy || faulty"
        " | useless | annoying",
        "good noun": "a gem | a bargain | a marvel | a winner | a joy to use | a treat || a success | a pleasure",
        "bad noun": "a dud | a disaster | a letdown | a waste of money | a pain to use | a piece of junk"
        " || a failure | a flop",
        "good claim": "it never lets you down | it does everything it promises | it was worth every penny"
        " | everything about it simply works || it will last for years"
        " | it gets all the small things right",
        "bad claim": "it freezes every few minutes | it does nothing it promises"
        " | it was not worth a penny | nothing about it works as it should || it will not last a year"
        " | it gets all the small things wrong",
        "good act": "fell in love with it within a day | bought a second one"
        " | recommended it to the whole office | was glad of the switch"
        " || never had a single problem with it | was delighted from day one",
        "bad act": "sent it back after a week | gave up on it within a day | asked for a refund"
        " | regretted the switch || wanted to throw it out of the window | was sick of it by the weekend",
        "good plot": "a lovely sunny week | a wonderful holiday || a cheerful family lunch",
        "bad plot": "a horrible rainy week | a dreadful week at work || an awful train strike",
    },
    "hotel": {
        "thing": "the hotel | this hotel | the room || the guest house",
        "kind": "hotel",
        "other": "the hotel next door | last year's hotel | the hostel down the road || our usual hotel",
        "be": "was",
        "has": "had",
        "can hardly be": "could hardly have been",
        "make": "made",
        "visit": "I stayed there in May | I spent a weekend there | I booked five nights || I was there over Easter",
        "have met": "have slept in",
        "a while": "an hour | the first evening || an afternoon",
        "aspect": "breakfast | pool | lobby | service | view | bed | location || hotel bar | bathroom | garden",
        "good trait": "comfortable | spotless | cosy | welcoming | quiet | spacious | relaxing | charming"
        " || peaceful | friendly | cheerful",
        "bad trait": "cramped | grubby | noisy | shabby | dingy | filthy | uncomfortable | gloomy || dirty"
        " | smelly | run-down",
        "good noun": "a gem | a haven | a find | a treat | a delight | a dream || a little paradise | a pleasure",
        "bad noun": "a dump | a nightmare | a rip-off | a disaster | a letdown | a disgrace || a failure | a mistake",
        "good claim": "it felt like home at once | nothing was too much trouble | it was worth every penny"
        " | every detail had been thought of | it could not have been cleaner"
        " || the staff could not do enough for me | every corner sparkled",
        "bad claim": "it felt like a prison | everything was too much trouble | it was not worth a penny"
        " | nothing in the room worked | it could not have been dirtier"
        " || the staff could not have cared less | every corner was dusty",
        "good act": "slept like a baby | booked another week | did not want to leave | went home rested"
        " || felt at home at once | promised to come back",
        "bad act": "checked out a day early | did not sleep at all | asked for a refund"
        " | swore never to return | could not wait to leave || complained every single day"
        " | slept badly every night",
        "good plot": "a wonderful flight | glorious sunny weather || a lovely drive",
        "bad plot": "a dreadful flight | horrible rainy weather || an awful drive",
    },
    "book": {
        "thing": "the book | the novel || this book",
        "kind": "book | novel",
        "other": "her first novel | the previous volume | the author's last book || the film of it",
        "be": "is",
        "has": "has",
        "can hardly be": "could hardly be",
        "make": "makes",
        "visit": "I read it on holiday | I started it on the train | I took it to bed with me"
        " || I got it from the library",
        "have met": "have read",
        "a while": "ten pages | a chapter or two || fifty pages",
        "aspect": "prose | plot | dialogue | opening chapter | cover | humour | ending || translation"
        " | final chapter | pacing",
        "good trait": "absorbing | witty | moving | original | elegant | vivid | engrossing | inventive"
        " || fascinating | exciting | enjoyable",
        "bad trait": "tedious | plodding | muddled | shallow | dull | pretentious | dreary | repetitive"
        " || confusing | silly | long-winded",
        "good noun": "a masterpiece | a triumph | a gem | a joy | a treat | a classic | a tour de force"
        " || a success | a page-turner",
        "bad noun": "a mess | a slog | a bore | a disappointment | a chore | a dud || a muddle | a waste of paper",
        "good claim": "every page is a pleasure | it grips from the first line | it never loses its way"
        " | every sentence earns its place || it stays with you for weeks | the people in it truly live",
        "bad claim": "every page is an effort | it goes nowhere | it loses its way by chapter two"
        " | it never comes alive || it falls apart in the middle | the people in it are made of wood",
        "good act": "could not put it down | read it twice | stayed up all night to finish it"
        " | loved every page | was sorry when it ended || was hooked by the second page"
        " | told everyone to read it",
        "bad act": "gave up after fifty pages | struggled to finish it | skipped whole chapters"
        " | hated every page || was bored by the second chapter | threw it across the room",
        "good plot": "a wonderful summer in Italy | two people in love | a brilliant young doctor"
        " || a happy family by the sea",
        "bad plot": "a terrible war | a miserable old man | a dreadful crime || a horrible shipwreck",
    },
}
