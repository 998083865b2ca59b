use super::*;
use proptest::prelude::*;

fn clean(domain: Domain, lines: &[&str]) -> Vec<Event> {
    clean_with(domain, &CleanOptions::default(), lines)
}

fn clean_with(domain: Domain, options: &CleanOptions, lines: &[&str]) -> Vec<Event> {
    let mut cleaner = Cleaner::new(domain, options);
    let mut events = Vec::new();
    for line in lines {
        cleaner.push(line, &mut events);
    }
    events
}

/// Lines of the first document, joined by `|`.
fn text(domain: Domain, line: &str) -> String {
    let lines = clean(domain, &[line]);
    let lines: Vec<&str> = lines
        .iter()
        .map(|e| match e {
            Event::Line(l) => l.as_str(),
            Event::DocumentEnd => "<end>",
        })
        .collect();
    lines.join("|")
}

#[test]
fn childes() {
    let t = |line| text(Domain::Childes, line);
    assert_eq!(t("*CHI: haha. [giggles]"), "haha.");
    assert_eq!(t("*CHI: xxx want he reads this one."), "want he reads this one.");
    assert_eq!(t("*MOT: [returns from phone]"), "");
    assert_eq!(t("*CHI: xxx."), "");
    assert_eq!(t("*LOU: [nods]. %add: lou+"), "");
    assert_eq!(t("*CHI: what 's this? [points]"), "what's this?");
    assert_eq!(
        t("*MOT: you wanna put that [crayons and paper] away... [MOT starts"),
        "you wanna put that away..."
    );
    assert_eq!(t("%mor: n|dog"), "");
    assert_eq!(t("good job. = = = childes/X.cha = = =*CHI: no."), "good job.|<end>|no.");
    assert_eq!(t("*CHI: choo_choo \u{2308}train\u{2309} &=laughs gaga@c."), "choo choo train gaga");
    assert_eq!(t("it says: here."), "it says: here.");
    let keep = CleanOptions { keep_speakers: true, ..CleanOptions::default() };
    assert_eq!(
        clean_with(Domain::Childes, &keep, &["*CHI: no.", "*MOT: [laughs]"]),
        [Event::Line("CHI: no.".into())]
    );
}

#[test]
fn switchboard() {
    let t = |line| text(Domain::Switchboard, line);
    assert_eq!(t("A: That's right,"), "That's right,");
    assert_eq!(t("B: It's a little to much *typo too"), "It's a little to much");
    assert_eq!(t("A: Way. *what is this?"), "Way.");
}

#[test]
fn subtitles() {
    let t = |line| text(Domain::Subtitles, line);
    assert_eq!(t("00:01:02,000 --> 00:01:04,000"), "");
    assert_eq!(t("12"), "");
    assert_eq!(t("- <i>Where are you?</i> [door closes]"), "Where are you?");
    assert_eq!(t("Subtitles by somebody"), "");
    assert_eq!(t("\u{266A} la la \u{266A}"), "la la");
}

#[test]
fn gutenberg() {
    let t = |line| text(Domain::Gutenberg, line);
    assert_eq!(
        t("It can also _see_ heat--and light\u{2014}too."),
        "It can also see heat -- and light -- too."
    );
    assert_eq!(
        t(
            "He died.' THE END End of Project Gutenberg's A Knight = = = PG39490 = = = A LAD OF GRIT Produced by Al Haines. He came."
        ),
        "He died.'|<end>|He came."
    );
    assert_eq!(t("so many [560] lamps [561] and [he said] more"), "so many lamps and he said more");
    assert_eq!(t("[Illustration: SPOTTED HYAENAS] So he drank."), "So he drank.");
    assert_eq!(t("* * * * *"), "");
    assert_eq!(t("123"), "");
    assert_eq!(t("Page 101, \"unbotton\" changed to \"unbutton\" (begins to unbutton)"), "");
    assert_eq!(
        t("\u{201C}Oh,\u{201D} she said, \u{2018}I can\u{2019}t.\u{2019}"),
        "\"Oh,\" she said, 'I can't.'"
    );
    let book = [
        "Title: X",
        "*** START OF THE PROJECT GUTENBERG EBOOK X ***",
        "Text here now.",
        "*** END OF THE X",
        "Licence text.",
    ];
    assert_eq!(clean(Domain::Gutenberg, &book), [Event::Line("Text here now.".into()), Event::DocumentEnd]);
}

#[test]
fn wiki() {
    let t = |line| text(Domain::SimpleWiki, line);
    assert_eq!(
        clean(Domain::SimpleWiki, &["One dog.", "= = = Confetti = = =", "= = = Poales = = =", "Two dogs."]),
        [Event::Line("One dog.".into()), Event::DocumentEnd, Event::Line("Two dogs.".into())]
    );
    assert_eq!(t("Weather vane = = = A weather vane is a device."), "A weather vane is a device.");
    assert_eq!(t("Gosai (Nepali: \u{FFFD}\u{FFFD}) is a politician."), "Gosai is a politician.");
    let w = |line| text(Domain::Wikipedia, line);
    assert_eq!(
        w("He left. External links Official site == References == The system was large."),
        "He left.|<end>|The system was large."
    );
    assert_eq!(
        w(
            "The distance {\\displaystyle r_{12}={\\frac {a}{b}}} between the centers of two loops [12] is small."
        ),
        "The distance between the centers of two loops is small."
    );
    assert_eq!(w("min ( x , y ) = x - f ( y - x ) = y - g ( x - y ) ."), "");
    assert_eq!(w("a | b | c | d"), "");
    assert_eq!(w("It shoots the .357 Magnum , they say ."), "It shoots the .357 Magnum, they say.");
    assert_eq!(w("so t=\\left and more words here"), "");
    assert_eq!(w("\u{415}\u{442}\u{43D}\u{438}\u{447}\u{43A}\u{43E} \u{43F}\u{43E}\u{440} and more"), "");
    assert_eq!(w("A fact from a book. ISBN 9781412833646."), "A fact from a book.");
}

#[test]
fn generic_and_documents() {
    let events = clean(Domain::Generic, &["", "One  line\u{0}", "", "", " = Head = ", "Two"]);
    assert_eq!(events, [Event::Line("One line".into()), Event::DocumentEnd, Event::Line("Two".into())]);
    let events = clean(Domain::Documents, &["a b", "c"]);
    assert_eq!(events.iter().filter(|e| **e == Event::DocumentEnd).count(), 2);
}

#[test]
fn domains_from_names() {
    assert_eq!(Domain::from_file_name("childes.train.gz"), Domain::Childes);
    assert_eq!(Domain::from_file_name("simple_wiki.dev.gz"), Domain::SimpleWiki);
    assert_eq!(Domain::from_file_name("wiki.test.raw.gz"), Domain::Wikipedia);
    assert_eq!(Domain::from_file_name("notes.txt"), Domain::Generic);
    let message = "gutenburg".parse::<Domain>().unwrap_err().to_string();
    assert!(message.contains("did you mean `gutenberg`"), "{message}");
}

proptest! {
    /// Any line, any domain: no panic, single spaces, no line break, no replacement character, and some text.
    #[test]
    fn every_line_comes_out_clean(line in "(\\PC|[\\[\\]{}()<>=*_|%&: \u{FFFD}\t-]){0,120}", which in 0usize..8) {
        let domain = [Domain::Childes, Domain::Switchboard, Domain::Subtitles, Domain::Gutenberg,
            Domain::SimpleWiki, Domain::Wikipedia, Domain::Generic, Domain::Documents][which];
        for event in clean(domain, &[&line, &line]) {
            if let Event::Line(out) = event {
                prop_assert!(out.chars().any(char::is_alphanumeric));
                prop_assert!(!out.contains("  ") && !out.contains(['\n', '\r', '\t', '\u{FFFD}']), "{:?}", out);
                prop_assert_eq!(out.trim(), &out);
            }
        }
    }
}
