//! Commands for people to copy.

use std::path::Path;

/// A path as a word of a command line.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_they_must_be() {
        let all = ["runs/out-1", "", "my runs", "it's", "$HOME"].map(|text| shell_word(Path::new(text)));
        assert_eq!(all, ["runs/out-1", "''", "'my runs'", r"'it'\''s'", "'$HOME'"]);
    }
}
