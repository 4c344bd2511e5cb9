//! The repository's files, read once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Folders without our source.
const SKIPPED: &[&str] = &["target", ".git", "out", "corpus", "__pycache__"];

/// Source files with their text, and the names of everything else. Paths are relative to the root, with `/`.
pub(crate) struct Sources {
    /// Rust, CUDA and Python files.
    pub(crate) files: BTreeMap<String, Source>,
    /// Every path of the repository, folders too.
    pub(crate) paths: BTreeSet<String>,
    root: PathBuf,
}

/// A source file.
pub(crate) struct Source {
    pub(crate) text: String,
    /// Its syntax, if it is Rust.
    pub(crate) syntax: Option<syn::File>,
}

impl Sources {
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut sources = Self { files: BTreeMap::new(), paths: BTreeSet::new(), root: root.to_owned() };
        sources.read_folder("")?;
        Ok(sources)
    }

    fn read_folder(&mut self, folder: &str) -> Result<()> {
        let entries = std::fs::read_dir(self.root.join(folder)).with_context(|| format!("cannot read `{folder}`"))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            if entry.file_type()?.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    self.paths.insert(path.clone());
                    self.read_folder(&path)?;
                }
                continue;
            }
            self.paths.insert(path.clone());
            if [".rs", ".cu", ".cuh", ".py"].iter().any(|extension| name.ends_with(extension)) {
                let text = self.text(&path)?;
                let syntax = match name.ends_with(".rs") {
                    true => Some(syn::parse_file(&text).with_context(|| format!("cannot parse `{path}`"))?),
                    false => None,
                };
                self.files.insert(path, Source { text, syntax });
            }
        }
        Ok(())
    }

    /// The text of any file.
    pub(crate) fn text(&self, path: &str) -> Result<String> {
        std::fs::read_to_string(self.root.join(path)).with_context(|| format!("cannot read `{path}`"))
    }
}
