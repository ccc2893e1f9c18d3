//! Makes foreign text safe to print: characters that control a terminal, end a line or change the order of text are
//! shown by their number instead.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character may be printed unchanged: not a control character (ESC, BEL, newlines, C1), not one that changes
/// the direction of text or ends a line, and not an invisible one.
#[must_use]
pub fn is_printable(c: char) -> bool {
    let is_hidden = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !is_hidden
}

/// The text with each character that is not [printable](is_printable) as `\u{NUMBER}`; newlines and tabs as `\n`, `\t`.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if is_printable(c) => shown.push(c),
            c => {
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
        }
    }
    Cow::Owned(shown)
}

/// The same, cut to at most `most` bytes of the original text.
#[must_use]
pub fn cut_printable(text: &str, most: usize) -> String {
    let cut = text.get(..text.floor_char_boundary(most)).unwrap_or_default();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("{}{more}", printable(cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_acts_on_a_terminal_is_shown_by_its_number() {
        for (text, shown) in [
            ("node-a is full", "node-a is full"),
            ("Größe 5 GiB — 日本", "Größe 5 GiB — 日本"),
            ("\u{1b}]0;owned\u{7}", "\\u{1b}]0;owned\\u{7}"),
            ("two\nlines\tand\r", "two\\nlines\\tand\\r"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\u{202e}b\u{2066}c\u{200b}", "a\\u{202e}b\\u{2066}c\\u{200b}"),
        ] {
            assert_eq!(printable(text), shown);
        }
        assert_eq!(cut_printable("äää\n", 5), "ää...");
        assert_eq!(cut_printable("ab\n", 9), "ab\\n");
    }

    proptest! {
        #[test]
        fn nothing_else_comes_through(text: Vec<char>) {
            let text: String = text.into_iter().collect();
            prop_assert!(printable(&text).chars().all(is_printable));
        }
    }
}
