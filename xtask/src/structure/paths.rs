//! Locations of files: `mod.rs` in folders, and the paths in the map.

use anyhow::Result;

use super::sources::Sources;

/// The map of the repository.
const MAP: &str = "docs/ARCHITECTURE.md";
/// Extensions of paths in the map; other words in backquotes are names, settings or files of users.
const ENDINGS: &[&str] = &[".rs", ".cu", ".cuh", ".md", ".py", ".toml"];

/// Modules that are a file beside their folder.
pub(crate) fn modules(sources: &Sources) -> Vec<String> {
    let files = sources.files.keys().filter_map(|path| Some((path, path.strip_suffix(".rs")?)));
    files
        .filter(|(_, folder)| sources.paths.contains(*folder))
        .map(|(path, folder)| format!("{path} is beside {folder}/: move it to {folder}/mod.rs"))
        .collect()
}

/// Paths of the map that do not exist.
pub(crate) fn of_the_map(sources: &Sources) -> Result<Vec<String>> {
    if !sources.paths.contains(MAP) {
        return Ok(Vec::new());
    }
    let text = sources.text(MAP)?;
    let mut problems = Vec::new();
    let mut in_block = false;
    // Folders that the lines above in a block have opened, with their indentation.
    let mut open: Vec<(usize, String)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut missing = |path: &str| problems.push(format!("{MAP}:{}: no `{path}`", number + 1));
        if line.starts_with("```") {
            (in_block, open) = (!in_block, Vec::new());
        } else if in_block {
            let indent = line.len() - line.trim_start().len();
            open.retain(|(outer, _)| *outer < indent);
            if let Some(name) = line.split_whitespace().next().and_then(|word| word.strip_suffix('/')) {
                let path = open.last().map_or(name.to_owned(), |(_, folder)| format!("{folder}/{name}"));
                if !sources.paths.contains(&path) {
                    missing(&path);
                }
                open.push((indent, path));
            }
        } else {
            let words = line.split('`').skip(1).step_by(2).filter(|word| is_path(word, sources));
            words.filter(|word| !exists(word, sources)).for_each(&mut missing);
            let links = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
            let links = links.filter(|link| !link.is_empty() && !link.contains(':'));
            links.filter(|link| !exists(link.trim_start_matches("../"), sources)).for_each(missing);
        }
    }
    Ok(problems)
}

/// Whether a word is a path of the repository: by its ending, or because it begins with a folder at the root.
fn is_path(word: &str, sources: &Sources) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./<>".contains(c));
    let folder = word.split_once('/').is_some_and(|(first, _)| sources.paths.contains(first));
    plain && (folder || ENDINGS.iter().any(|ending| word.ends_with(ending)))
}

/// Whether a path exists, from the root or as the end of a longer one; `<op>` is any name.
fn exists(word: &str, sources: &Sources) -> bool {
    let wanted: Vec<&str> = word.trim_end_matches('/').split('/').collect();
    sources.paths.iter().any(|path| {
        let parts: Vec<&str> = path.split('/').collect();
        parts.len() >= wanted.len()
            && parts.iter().rev().zip(wanted.iter().rev()).all(|(part, wanted)| matches(part, wanted))
    })
}

fn matches(part: &str, wanted: &str) -> bool {
    match (wanted.find('<'), wanted.find('>')) {
        (Some(open), Some(close)) if open < close => {
            part.len() >= wanted.len() - (close + 1 - open)
                && part.starts_with(&wanted[..open])
                && part.ends_with(&wanted[close + 1..])
        }
        _ => part == wanted,
    }
}
