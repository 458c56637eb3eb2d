//! Passwords that are on everybody's list, without the list: what people make of a few words that everybody takes, by hanging digits and signs
//! on, writing letters as digits, and saying it twice. Attackers make theirs by the same rules.

use std::collections::HashSet;
use std::sync::LazyLock;

use zeroize::Zeroizing;

use super::{REST_MIN, is_step, unit, unleet};

/// Common passwords, one a line, in lower case. Those that are long enough to be chosen, and the words that people make them from.
const BLOCKLIST: &str = include_str!("blocklist.txt");

static LISTED: LazyLock<HashSet<&str>> = LazyLock::new(|| BLOCKLIST.lines().collect());

/// What people put between words.
const GLUE: [&str; 38] = [
    "a", "am", "and", "are", "be", "best", "big", "for", "go", "good", "i", "in", "is", "it", "like", "love", "loves",
    "me", "my", "new", "no", "not", "now", "of", "old", "on", "one", "our", "so", "that", "the", "this", "to", "two",
    "us", "we", "you", "your",
];
/// A word of the list counts for two, and what is between words for one: three words and nothing else, or two with two between them. Four
/// words of the list are left: each makes several hundred times as many.
const WORDS_COST_MAX: usize = 6;
/// Shorter words of the list are parts of others.
const WORD_LEN_MIN: usize = 4;
/// Bytes of the longest word of the list, which a test looks at.
const WORD_BYTES_MAX: usize = 40;

/// Whether a common password is this, as it is, without what people hang on to it, or several times in a row.
pub(super) fn is_listed(folded: &str) -> bool {
    let listed = |text: &str| LISTED.contains(text);
    let plain: Zeroizing<String> =
        Zeroizing::new(folded.chars().map(unleet).filter(|letter| !letter.is_whitespace()).collect());
    let trimmed = folded.trim_matches(|letter: char| !letter.is_alphabetic());
    listed(folded) || listed(&plain) || listed(trimmed) || unit(folded).is_some_and(|unit| listed(&unit))
}

/// Whether it is made of a few words of the list. What is not is kept to: eight digits that do not follow from each other are a password's.
pub(super) fn is_made_of_listed(folded: &str) -> bool {
    let said_once = unit(folded);
    let text = said_once.as_ref().map_or(folded, |unit| unit.as_str());
    [Reading::Plain, Reading::Unleet, Reading::UnleetWithin].into_iter().any(|reading| {
        let (letters, left_out) = read(text, reading);
        left_out < REST_MIN && (are_few(&letters) || unit(&letters).is_some_and(|unit| are_few(&unit)))
    })
}

/// How letters are read out of a password.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Digits and signs are left out.
    Plain,
    /// … unless they stand for letters.
    Unleet,
    /// … those at its ends do not.
    UnleetWithin,
}

/// Its letters, and how many characters are left out of which none follows from the one before.
fn read(text: &str, reading: Reading) -> (Zeroizing<String>, usize) {
    let is_end = |letter: char| !letter.is_alphabetic() && !matches!(letter, '@' | '$');
    let within = if reading == Reading::UnleetWithin { text.trim_matches(is_end) } else { text };
    let first = text.len() - text.trim_start_matches(is_end).len();
    let begin = if reading == Reading::UnleetWithin { first } else { 0 };
    let range = begin..begin + within.len();
    let (mut letters, mut left_out, mut before) = (Zeroizing::new(String::with_capacity(text.len())), 0, None);
    for (at, letter) in text.char_indices() {
        let meant = if reading == Reading::Plain { letter } else { unleet(letter) };
        if range.contains(&at) && meant.is_alphabetic() {
            letters.push(meant);
        } else if !letter.is_whitespace() && !before.is_some_and(|before| is_step(before, letter)) {
            left_out += 1;
        }
        before = Some(letter);
    }
    (letters, left_out)
}

/// Whether the letters are words of the list and what people put between them, and few of those.
fn are_few(letters: &str) -> bool {
    let ends: Vec<usize> = letters.char_indices().map(|(at, _)| at).chain([letters.len()]).collect();
    // The least that what comes before each place costs, if it is nothing but words.
    let mut least: Vec<Option<usize>> = vec![Some(0)];
    for (to, end) in ends.iter().copied().enumerate().skip(1) {
        let mut found: Option<usize> = None;
        for (from, begin) in ends[..to].iter().copied().enumerate().rev() {
            let word = &letters[begin..end];
            if word.len() > WORD_BYTES_MAX {
                break;
            }
            let Some(before) = least[from] else { continue };
            let is_word = to - from >= WORD_LEN_MIN && LISTED.contains(word);
            let cost = match (is_word, GLUE.contains(&word)) {
                (true, _) => before + 2,
                (false, true) => before + 1,
                (false, false) => continue,
            };
            found = Some(found.map_or(cost, |found| found.min(cost)));
        }
        least.push(found);
    }
    !letters.is_empty() && least.last().copied().flatten().is_some_and(|cost| cost <= WORDS_COST_MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::password::{LEN_MAX, LEN_MIN_ALONE, Password, Weak, check};

    fn verdict(text: &str) -> Result<(), Weak> {
        check(&Password::new(text).unwrap(), LEN_MIN_ALONE, &"ada@engines.example".parse().unwrap(), "Ada Lovelace")
    }

    #[test]
    fn the_list_is_sorted_in_lower_case_and_has_no_word_twice() {
        let lines: Vec<&str> = BLOCKLIST.lines().collect();
        assert!(lines.is_sorted() && lines.len() == LISTED.len());
        for line in lines {
            assert_eq!(line, line.to_lowercase());
            assert!(line.trim() == line && (1..=WORD_BYTES_MAX).contains(&line.len()), "{line}");
        }
        assert!(GLUE.is_sorted());
    }

    #[test]
    fn what_is_made_of_common_words_is_common() {
        for bad in [
            "passwordadmin123",
            "iloveyouforever2024",
            "P@ssw0rdAdm1n2024!",
            "I love my Monkey 2024!",
            "monkey12monkey12monkey12",
            "$ummerWinter2026",
            "MyP@ssw0rdIs1234",
            "orange banana monkey",
            "phoenix2025phoenix2025",
            "dragon-master-007",
        ] {
            assert_eq!(verdict(bad), Err(Weak::Common), "{bad}");
        }
        for good in [
            "orange banana monkey dragon",
            "summer 8392-2910-1829 winter",
            "the money of the church in london",
            "dragons eat cement",
            "8392 2910 1829 4471",
        ] {
            assert_eq!(verdict(good), Ok(()), "{good}");
        }
    }

    /// ASVS 5.0, V6.2.4: of the passwords that are common and as long as they have to be, three thousand at least. No such list can be shipped, so
    /// they are made here as people (and attackers' rules) make them.
    #[test]
    fn three_thousand_common_passwords_of_the_length_that_is_asked_for_are_refused() {
        let words =
            BLOCKLIST.lines().filter(|word| word.len() >= WORD_LEN_MIN && word.bytes().all(|b| b.is_ascii_lowercase()));
        let mut made = BTreeSet::new();
        for word in words {
            let capital = format!("{}{}", word[..1].to_uppercase(), &word[1..]);
            let signs = word.replace('a', "@").replace('s', "$");
            let each = [
                format!("{word}{word}"),
                format!("{word}{word}{word}"),
                format!("{capital}{capital}123"),
                format!("{signs}{signs}1!"),
                format!("{word}1234567890"),
                format!("{word}2025{word}2025"),
                format!("password{word}1"),
                format!("{capital}Password2026!"),
                format!("ilove{word}123456"),
                format!("admin {word} 007"),
            ];
            let is_chosen = |text: &String| (LEN_MIN_ALONE..=LEN_MAX).contains(&text.chars().count());
            made.extend(each.into_iter().filter(is_chosen));
        }
        assert!(made.len() > 3_000, "{}", made.len());
        let passed: Vec<&String> = made.iter().filter(|text| verdict(text).is_ok()).collect();
        assert!(passed.is_empty(), "{} of {}: {passed:?}", passed.len(), made.len());
    }
}
