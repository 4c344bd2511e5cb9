//! The structure of the source, checked by the gate: no import cycles between files, files and functions that can be read at
//! one sitting, `mod.rs` for folders, one folder that knows the system, and a map (`docs/ARCHITECTURE.md`) whose paths exist.

mod circles;
mod lengths;
mod modules;
mod paths;
mod references;
mod sources;
mod systems;

use std::path::Path;

use anyhow::{Result, bail};

use sources::Sources;

/// Imports `(importing, imported)` that may close a cycle until their files are rewritten.
const ALLOWED_IMPORTS: &[(&str, &str)] = &[];

/// Checks the repository that `root` is.
///
/// # Errors
/// If there are problems; each is printed first.
pub(crate) fn run(root: &Path) -> Result<()> {
    let sources = Sources::read(root)?;
    let problems = problems(&sources, ALLOWED_IMPORTS)?;
    for problem in &problems {
        println!("{problem}\n");
    }
    if !problems.is_empty() {
        bail!("the structure has {} problems, printed above", problems.len());
    }
    println!("structure: {} files, no import circle", sources.files.len());
    Ok(())
}

/// All problems, one text each.
fn problems(sources: &Sources, allowed: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut problems = circles::problems(&references::imports(sources)?, allowed);
    problems.extend(lengths::problems(sources));
    problems.extend(systems::problems(sources));
    problems.extend(paths::modules(sources));
    problems.extend(paths::of_the_map(sources)?);
    Ok(problems)
}

#[cfg(test)]
mod tests;
