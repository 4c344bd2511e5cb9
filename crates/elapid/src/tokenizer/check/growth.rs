//! How much a text can grow through replacements whose results later steps replace again.
//!
//! Ten steps that each double a character multiply it a thousandfold, and a file has room for hundreds of steps. The steps
//! are run on the strings that each of them looks for and inserts, up to a limit.

use fancy_regex::Regex;

use super::{Pattern, Step, shortened};
use crate::tokenizer::byte;

/// Maximum growth factor of a text. The crate needs 17 bytes per byte of text, and a text is read in pieces of 256 KiB, so a
/// piece takes up to 300 MB.
const MAX_GROWTH: usize = 64;
/// Maximum bytes that may replace one match.
const MAX_CONTENT: usize = 4096;

/// The effect of a step on the length of a text.
enum Change<'a> {
    String(&'a str, &'a str),
    Regex(Box<Regex>, &'a str),
    Prepend(&'a str),
    Lowercase,
    /// One character per byte.
    Bytes,
    /// Spaces become this character, and one is prepended.
    Spaces(&'a str),
    Nothing,
}

impl<'a> Change<'a> {
    fn of(step: &Step<'a>) -> Self {
        if let (Some(pattern), Some(content)) = (step.pattern(), step.text("content")) {
            return match pattern {
                Pattern::String(text) => Self::String(text, content),
                // A regex that does not compile is refused by the crate.
                Pattern::Regex(regex) => {
                    Regex::new(regex).map_or(Self::Nothing, |regex| Self::Regex(Box::new(regex), content))
                }
            };
        }
        match (step.text("prepend"), step.text("type")) {
            (Some(text), _) => Self::Prepend(text),
            (_, Some("Lowercase" | "BertNormalizer" | "Bert")) => Self::Lowercase,
            (_, Some("ByteLevel")) => Self::Bytes,
            (_, Some("Metaspace")) => Self::Spaces(step.text("replacement").unwrap_or("▁")),
            _ => Self::Nothing,
        }
    }

    /// The text after the step, `None` if it has more than `limit` bytes.
    fn apply(&self, text: &str, limit: usize) -> Option<String> {
        let kept = |text: String| Some(text).filter(|text| text.len() <= limit);
        match self {
            Self::String("", _) | Self::Nothing => kept(text.to_owned()),
            Self::String(pattern, content) => {
                let matches = text.matches(pattern).count();
                let len = text.len() - matches * pattern.len() + matches * content.len();
                (len <= limit).then(|| text.replace(pattern, content))
            }
            Self::Regex(regex, content) => {
                let mut out = String::new();
                let mut end = 0;
                for found in regex.find_iter(text).map_while(Result::ok) {
                    out.push_str(text.get(end..found.start())?);
                    out.push_str(content);
                    end = found.end();
                    if out.len() > limit {
                        return None;
                    }
                }
                out.push_str(text.get(end..)?);
                kept(out)
            }
            Self::Prepend(front) => kept(format!("{front}{text}")),
            Self::Lowercase => kept(text.to_lowercase()),
            Self::Bytes => kept(text.bytes().map(|byte| byte::CHARS[usize::from(byte)]).collect()),
            Self::Spaces(space) => {
                let mut out = text.replace(' ', space);
                out.insert_str(0, space);
                kept(out)
            }
        }
    }

    /// Texts that the step changes or produces.
    fn samples(&self) -> Vec<String> {
        match self {
            Self::String(pattern, content) => vec![(*pattern).to_owned(), (*content).to_owned()],
            Self::Regex(_, content) => vec![(*content).to_owned()],
            _ => Vec::new(),
        }
    }
}

/// Runs every step's own texts, and a few common ones, through the steps that follow.
pub(super) fn check(first: &[Step<'_>], then: &[Step<'_>]) -> Result<(), String> {
    let steps: Vec<&Step<'_>> = first.iter().chain(then).collect();
    if let Some(step) = steps.iter().find(|step| step.text("content").is_some_and(|text| text.len() > MAX_CONTENT)) {
        return Err(
            step.error("content", format_args!("has more than {MAX_CONTENT} bytes, put in place of each match"))
        );
    }
    let changes: Vec<Change<'_>> = steps.iter().map(|step| Change::of(step)).collect();
    let common = ["a", "A", " ", "\n", "1", ".", "é", "▁", "日"].map(|text| (0, text.to_owned()));
    let own =
        changes.iter().enumerate().flat_map(|(i, change)| change.samples().into_iter().map(move |text| (i, text)));
    for (from, sample) in common.into_iter().chain(own).filter(|(_, sample)| !sample.is_empty()) {
        let limit = MAX_GROWTH * sample.len();
        let mut text = sample.clone();
        for (step, change) in steps.iter().zip(&changes).skip(from) {
            text = change.apply(&text, limit).ok_or_else(|| {
                let of = shortened(&sample);
                format!(
                    "{}: makes {of:?} more than {MAX_GROWTH} times as long; remove replacements of replacements",
                    step.path
                )
            })?;
        }
    }
    Ok(())
}
