//! A TOML parser's error with the setting's name and a fix.

use super::{ConfigError, fields};

/// Where the error is, in which setting, and what would do.
pub(super) fn explain(error: &toml::de::Error, text: &str, file: &str) -> ConfigError {
    let at = error.span().map(|span| span.start.min(text.len()));
    let line = at.map(|at| text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1);
    let field = line.map_or_else(String::new, |line| field(text, line));
    let message = error.message().lines().next().unwrap_or_default();
    let (what, fix) = if message.starts_with("unknown field") {
        let fix = match nearest(&field, &fields()) {
            Some(near) if field.contains('.') => format!("did you mean `{near}`?"),
            _ => "sections are [model], [data], [train] and [output]".into(),
        };
        ("there is no such setting".into(), fix)
    } else if message.starts_with("invalid type") || message.starts_with("invalid value") {
        (message.to_owned(), "configs/default.toml shows every setting".to_owned())
    } else if message.starts_with("unknown variant") {
        (message.to_owned(), "choose one of them".to_owned())
    } else {
        (message.to_owned(), "correct the TOML there".to_owned())
    };
    ConfigError { file: file.to_owned(), line, field, what, fix }
}

/// The setting on a line: its section and its key.
fn field(text: &str, line: usize) -> String {
    let upto: Vec<&str> = text.lines().take(line).collect();
    let section = |line: &&str| {
        let inside = line.trim().strip_prefix('[')?.split(']').next()?.trim();
        (!line.contains('=')).then(|| inside.to_owned())
    };
    let last = upto.last().copied().unwrap_or_default();
    if let Some(section) = section(&last) {
        return section;
    }
    let section = upto.iter().rev().find_map(section);
    match (section, last.split_once('=').map(|(key, _)| key.trim())) {
        (Some(section), Some(key)) => format!("{section}.{key}"),
        (None, Some(key)) => key.to_owned(),
        (section, None) => section.unwrap_or_default(),
    }
}

/// The name that takes the fewest edits; of the last part alone if the section is wrong too.
pub(super) fn nearest<'a>(name: &str, names: &'a [String]) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |other: &String| edits(name, other).min(edits(&last(name), &last(other)) + 1);
    names.iter().min_by_key(|other| distance(other)).map(String::as_str)
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, c) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for j in 0..b.len() {
            let substitute = diagonal + usize::from(c != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        for (a, b, wanted) in [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("lr", "lr", 0), ("ab", "ba", 2)]
        {
            assert_eq!((edits(a, b), edits(b, a)), (wanted, wanted), "{a} {b}");
        }
    }
}
