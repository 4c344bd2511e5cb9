//! Text of models and files as a terminal may show it: a character that moves the cursor, changes colours or turns the
//! direction of writing is shown as an escape. Pipes and files get text as it is.

use std::fmt::Write;

/// The longest message; of a longer one its beginning and its end are shown.
const MESSAGE: usize = 2000;

/// Text that comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// Whether a carriage return waits for its line feed.
    carriage_return: bool,
}

impl Shown {
    /// The next piece as it is shown; `\r\n` is a line end.
    pub(crate) fn push(&mut self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        for c in text.chars() {
            if std::mem::take(&mut self.carriage_return) && c != '\n' {
                shown += "\\r";
            }
            match c {
                '\r' => self.carriage_return = true,
                '\n' | '\t' => shown.push(c),
                c if c.is_control() || turns(c) => write!(shown, "{}", c.escape_default()).unwrap_or_default(),
                c => shown.push(c),
            }
        }
        shown
    }

    /// What was held back.
    pub(crate) fn finish(self) -> &'static str {
        if self.carriage_return { "\\r" } else { "" }
    }
}

/// Marks that change the direction of what follows.
fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A whole text as it is shown.
pub(crate) fn shown(text: &str) -> String {
    let mut pieces = Shown::default();
    pieces.push(text) + pieces.finish()
}

/// A message, which may quote a file of any contents: as it is shown, and not longer than a screen.
pub(crate) fn message(text: &str) -> String {
    let count = text.chars().count();
    if count <= MESSAGE {
        return shown(text);
    }
    let (first, last) = (MESSAGE * 3 / 4, MESSAGE / 4);
    let head: String = text.chars().take(first).collect();
    let tail: String = text.chars().skip(count - last).collect();
    shown(&format!("{head} … ({} characters left out) … {tail}", count - first - last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_escapes() {
        assert_eq!(shown("a\tb\r\n\x1b[31m\u{7}é\u{9b}\u{202e}x"), "a\tb\n\\u{1b}[31m\\u{7}é\\u{9b}\\u{202e}x");
        assert_eq!(shown("up\r"), "up\\r");
        let mut pieces = Shown::default();
        assert_eq!(
            (pieces.push("a\r"), pieces.push("\nb\r"), pieces.push("c")),
            ("a".into(), "\nb".into(), "\\rc".into())
        );
        assert_eq!(pieces.finish(), "");
    }

    #[test]
    fn long_messages_keep_their_ends() {
        let text = format!("file: {}\x1b; the fix", "x".repeat(90_000));
        let message = message(&text);
        assert!(message.starts_with("file: xxx") && message.ends_with("x\\u{1b}; the fix"), "{message}");
        assert!(message.chars().count() < MESSAGE + 60 && message.contains("characters left out"));
        assert_eq!(super::message("short\nand two"), "short\nand two");
    }
}
