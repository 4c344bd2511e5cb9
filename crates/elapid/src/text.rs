//! Text that arrives in pieces: characters split across tokens, and strings that end a generation.

/// Assembles bytes into text without splitting a character.
///
/// Its joined output equals [`String::from_utf8_lossy`] of all bytes at once, however they were cut: bytes that are not
/// UTF-8 become U+FFFD.
#[derive(Debug, Clone, Default)]
pub struct Utf8Stream {
    /// The beginning of a character, at most 3 bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// A stream at the beginning of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes and returns all text that is certain by now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending.clear();
                    return text;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    match e.error_len() {
                        Some(invalid) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[invalid..];
                        }
                        None => {
                            self.pending = after.to_vec();
                            return text;
                        }
                    }
                }
            }
        }
    }

    /// Ends the text: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Output of [`StopStrings`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Released {
    /// Text that is not part of a stop string and cannot become one.
    pub text: String,
    /// The stop string that was found, by its index in the list.
    pub stop: Option<usize>,
}

/// Ends a text at the first of some strings, and withholds what might be the beginning of one.
///
/// The string that is complete first ends the text; of two that are complete at the same character, the longer. The result
/// does not depend on how the text was cut.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

impl StopStrings {
    /// A matcher of some strings; empty ones are ignored, and with none all text passes.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Self {
        Self { stops: stops.into_iter().map(Into::into).collect(), held: String::new(), stopped: None }
    }

    /// Adds text and returns what is certain by now. After a stop string it returns nothing more.
    pub fn push(&mut self, text: &str) -> Released {
        if self.stopped.is_some() {
            return Released { text: String::new(), stop: self.stopped };
        }
        self.held.push_str(text);
        let wanted = || self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = wanted()
            .filter_map(|(i, stop)| self.held.find(stop.as_str()).map(|begin| (begin + stop.len(), begin, i)))
            .min();
        if let Some((_, begin, i)) = found {
            self.held.truncate(begin);
            self.stopped = Some(i);
            return Released { text: std::mem::take(&mut self.held), stop: self.stopped };
        }
        let longest = wanted().map(|(_, stop)| stop.len()).max().unwrap_or(0);
        let may_begin = |at: usize| wanted().any(|(_, stop)| stop.starts_with(&self.held[at..]));
        // Only the last `longest - 1` bytes can be the beginning of a stop string.
        let tail = self.held.len().saturating_sub(longest.saturating_sub(1));
        let first = (tail..self.held.len()).find(|&at| self.held.is_char_boundary(at)).unwrap_or(self.held.len());
        let keep = self.held[first..].char_indices().map(|(i, _)| first + i).find(|&at| may_begin(at));
        let kept = keep.map_or_else(String::new, |at| self.held.split_off(at));
        Released { text: std::mem::replace(&mut self.held, kept), stop: None }
    }

    /// Ends the text: withheld text is returned.
    pub fn finish(&mut self) -> Released {
        Released { text: std::mem::take(&mut self.held), stop: self.stopped }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lossy_in_pieces(pieces: &[Vec<u8>]) -> String {
        let mut stream = Utf8Stream::new();
        let mut text: String = pieces.iter().map(|piece| stream.push(piece)).collect();
        text += &stream.finish();
        text
    }

    /// Text by the definition: character by character, stopping as soon as a stop string is complete.
    fn stop_naive(text: &str, stops: &[String]) -> Released {
        for (end, c) in text.char_indices() {
            let so_far = &text[..end + c.len_utf8()];
            let ends = stops.iter().enumerate().filter(|(_, s)| !s.is_empty() && so_far.ends_with(s.as_str()));
            if let Some((i, stop)) = ends.max_by_key(|(i, s)| (s.len(), std::cmp::Reverse(*i))) {
                return Released { text: so_far[..so_far.len() - stop.len()].to_owned(), stop: Some(i) };
            }
        }
        Released { text: text.to_owned(), stop: None }
    }

    fn stop_in_pieces(pieces: &[String], stops: &[String]) -> Released {
        let mut matcher = StopStrings::new(stops.iter().cloned());
        let mut text: String = pieces.iter().map(|piece| matcher.push(piece).text).collect();
        let last = matcher.finish();
        text += &last.text;
        Released { text, stop: last.stop }
    }

    #[test]
    fn a_character_comes_whole() {
        let mut stream = Utf8Stream::new();
        assert_eq!(stream.push("€".as_bytes().split_at(1).0), "");
        assert_eq!(stream.push(&"€".as_bytes()[1..2]), "");
        assert_eq!(stream.push(b"\xacx"), "€x");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn a_cut_character_at_the_end_is_one_replacement() {
        let mut stream = Utf8Stream::new();
        assert_eq!(stream.push(b"a\xf0\x9f\x98"), "a");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.push(b"b"), "b", "a finished stream begins anew");
    }

    #[test]
    fn a_possible_beginning_is_withheld() {
        let mut matcher = StopStrings::new(["\n\n", "User:"]);
        assert_eq!(matcher.push("Hello\n").text, "Hello");
        assert_eq!(matcher.push("Us").text, "\n");
        assert_eq!(matcher.push("e it").text, "Use it");
        assert_eq!(matcher.push(" now\n"), Released { text: " now".into(), stop: None });
        assert_eq!(matcher.push("\nmore"), Released { text: String::new(), stop: Some(0) });
        assert_eq!(matcher.push("and more"), Released { text: String::new(), stop: Some(0) });
        assert_eq!(matcher.finish(), Released { text: String::new(), stop: Some(0) });
    }

    #[test]
    fn without_stop_strings_all_passes() {
        let mut matcher = StopStrings::new(Vec::<String>::new());
        assert_eq!(matcher.push("abc").text, "abc");
        let mut matcher = StopStrings::new([""]);
        assert_eq!(matcher.push("abc"), Released { text: "abc".into(), stop: None });
    }

    proptest! {
        #[test]
        fn utf8_is_lossy_of_the_whole(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..6),
                    "\\PC{0,3}".prop_map(String::into_bytes),
                    prop::collection::vec(prop::sample::select(vec![0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80, 0x41]), 0..4),
                ],
                0..12,
            )
        ) {
            let whole: Vec<u8> = pieces.concat();
            prop_assert_eq!(lossy_in_pieces(&pieces), String::from_utf8_lossy(&whole));
        }

        #[test]
        fn stops_do_not_depend_on_pieces(
            pieces in prop::collection::vec("[abé]{0,4}", 0..10),
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
        ) {
            let whole = stop_naive(&pieces.concat(), &stops);
            prop_assert_eq!(stop_in_pieces(&pieces, &stops), whole);
        }
    }
}
