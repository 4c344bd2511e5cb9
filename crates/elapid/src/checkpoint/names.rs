//! Translation of tensor names in a file to elapid's names.
//!
//! elapid's names are those of Hugging Face's `MambaForCausalLM`. Other programs add a prefix to all of them (from a
//! wrapper: `module.` of DistributedDataParallel, `_orig_mod.` of torch.compile, `model.` of a Lightning module), omit
//! `backbone.` (`MambaModel`), or use `embedding` for `embeddings` (the original code). Which of these applies follows from
//! the file's set of names alone.

use std::collections::BTreeSet;

use crate::formats::Places;
use crate::formats::places::EMBEDDING;

/// The prefix of all of elapid's names except the head's.
const BACKBONE: &str = "backbone.";
/// First segments of names inside the backbone.
const INSIDE: [&str; 4] = ["embeddings", "embedding", "layers", "norm_f"];
/// Segments that PyTorch puts before the names of a wrapped module, anywhere in a model.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"];
/// The original code's name of the embedding.
const EMBEDDING_ORIGINAL: &str = "backbone.embedding.weight";

/// How a file's names become elapid's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Renaming {
    /// The prefix to remove from every name, including its last dot.
    prefix: String,
    /// Segments of wrappers to remove from the middle of names.
    wrappers: Vec<&'static str>,
    /// Whether to add `backbone.` before names that belong there.
    backbone: bool,
    /// What is put before every name but the head's, as a model without its head is written by another format.
    base: String,
    head: String,
    /// Whether the names are those of a format that lists them, and not elapid's.
    listed: bool,
}

impl Renaming {
    /// The renaming for a file with these names, of a model whose tensors have these places.
    pub(super) fn of<'a>(places: &Places, names: impl Iterator<Item = &'a str>) -> Self {
        if places.are_own() { Self::to_own(names) } else { Self::to_format(places, names) }
    }

    /// For another format: a prefix that all names have is taken off, or the one that a model without its head lacks is
    /// put before them. Both follow from the embedding's name.
    fn to_format<'a>(places: &Places, names: impl Iterator<Item = &'a str>) -> Self {
        let (names, [embedding, head]): (Vec<&str>, _) = (names.collect(), places.ends());
        let prefix = names.iter().find_map(|name| name.strip_suffix(embedding.as_str())).unwrap_or_default();
        let prefix = if names.iter().all(|name| name.starts_with(prefix)) { prefix } else { "" };
        let base = embedding.split_once('.').filter(|(_, rest)| names.contains(rest));
        let base = base.map_or_else(String::new, |(base, _)| format!("{base}."));
        Self { prefix: prefix.to_owned(), base, head, listed: true, ..Self::default() }
    }

    /// For elapid's own names. A prefix is one that all names have, and after which a Mamba model's
    /// names come.
    fn to_own<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let names: Vec<&str> = names.collect();
        let prefix = common_prefix(&names);
        let rest = || names.iter().map(|name| &name[prefix.len()..]);
        let wrappers =
            WRAPPERS.into_iter().filter(|wrapper| rest().any(|name| inner(name).any(|part| part == *wrapper)));
        let wrappers = wrappers.collect();
        let has = |first: &str| rest().any(|name| first_segment(name) == first);
        let backbone = !has("backbone") && (has("embeddings") || has("embedding")) && has("layers");
        if !backbone && !has("backbone") {
            return Self::default();
        }
        Self { prefix: prefix.to_owned(), wrappers, backbone, ..Self::default() }
    }

    /// elapid's name for a file's.
    pub(super) fn apply(&self, name: &str) -> String {
        let name = name.strip_prefix(self.prefix.as_str()).unwrap_or(name);
        let mut segments = name.split('.');
        let first = segments.next().unwrap_or_default();
        let mut ours = match () {
            () if self.backbone && INSIDE.contains(&first) => BACKBONE.to_owned(),
            () if name != self.head => self.base.clone(),
            () => String::new(),
        };
        ours.push_str(first);
        for segment in segments.filter(|segment| !self.wrappers.contains(segment)) {
            ours.push('.');
            ours.push_str(segment);
        }
        if ours == EMBEDDING_ORIGINAL && !self.listed { EMBEDDING.to_owned() } else { ours }
    }

    /// A description for users; empty for names as Hugging Face or the original code writes them.
    pub(super) fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if !self.prefix.is_empty() {
            notices.push(format!("all names of tensors begin with `{}`, which was taken off", self.prefix));
        }
        if !self.wrappers.is_empty() {
            let segments: Vec<String> = self.wrappers.iter().map(|segment| format!("`{segment}.`")).collect();
            notices.push(format!("{} was taken out of names of tensors", segments.join(" and ")));
        }
        if self.backbone {
            notices.push(
                "names of tensors lack `backbone.` (as MambaModel writes them), which was put before them".into(),
            );
        }
        if !self.base.is_empty() {
            notices.push(format!(
                "names of tensors lack `{}` (as a model without its head is written), which was put before them",
                self.base
            ));
        }
        notices
    }
}

fn first_segment(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

/// The segments of a name except the first.
fn inner(name: &str) -> impl Iterator<Item = &str> {
    name.split('.').skip(1)
}

/// The longest run of whole segments that all names begin with and that ends before a segment of the model's own.
fn common_prefix<'a>(names: &[&'a str]) -> &'a str {
    let Some(first) = names.first() else { return "" };
    let own = |segment: &str| segment == "backbone" || segment == "lm_head" || INSIDE.contains(&segment);
    let mut end = 0;
    for (dot, _) in first.match_indices('.') {
        let candidate = &first[..=dot];
        if own(&first[end..dot]) || !names.iter().all(|name| name.starts_with(candidate)) {
            break;
        }
        end = dot + 1;
    }
    &first[..end]
}

/// How a set of names differs from the expected one, in one line; none if it does not. `names` are elapid's name and the
/// file's for each tensor.
pub(super) fn difference(wanted: &BTreeSet<&str>, names: &[(&str, &str)]) -> Option<String> {
    let there: BTreeSet<&str> = names.iter().map(|(ours, _)| *ours).collect();
    let missing: Vec<&str> = wanted.difference(&there).copied().collect();
    let extra: Vec<&str> = names.iter().filter(|(ours, _)| !wanted.contains(ours)).map(|(_, stored)| *stored).collect();
    if missing.is_empty() && extra.is_empty() {
        return None;
    }
    let mut parts = Vec::new();
    if !missing.is_empty() {
        let closest = |name: &&str| match closest(name, &extra) {
            Some(other) => format!("`{name}` (`{other}` is there)"),
            None => format!("`{name}`"),
        };
        parts.push(format!("{} missing: {}", missing.len(), list(&missing, closest)));
    }
    if !extra.is_empty() {
        parts.push(format!("{} unexpected: {}", extra.len(), list(&extra, |name| format!("`{name}`"))));
    }
    if let Some((prefix, count)) = partial_prefix(&missing, &extra) {
        parts
            .push(format!("{count} names fit without `{prefix}`, but a prefix is taken off only if all names have it"));
    }
    Some(parts.join("; "))
}

/// The first few, and how many more there are.
pub(super) fn list(names: &[&str], show: impl Fn(&&str) -> String) -> String {
    const SHOWN: usize = 6;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.iter().take(SHOWN).map(show).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// The most similar name, if at least half of it matches.
fn closest<'a>(name: &str, among: &[&'a str]) -> Option<&'a str> {
    const TRIED: usize = 4096;
    let alike = |other: &&str| strsim::normalized_damerau_levenshtein(name, other);
    let scored = among.iter().take(TRIED).map(|other| (alike(other), *other));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(alike, _)| *alike > 0.5).map(|(_, other)| other)
}

/// A prefix whose removal would give some of the missing names, and how many.
fn partial_prefix<'a>(missing: &[&str], extra: &[&'a str]) -> Option<(&'a str, usize)> {
    let mut counts: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for name in extra {
        for (dot, _) in name.match_indices('.') {
            let (prefix, rest) = name.split_at(dot + 1);
            if missing.binary_search(&rest).is_ok() {
                *counts.entry(prefix).or_default() += 1;
            }
        }
    }
    counts.into_iter().max_by_key(|(_, count)| *count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::places::HEAD;

    const NAMES: [&str; 5] = [
        EMBEDDING,
        "backbone.layers.0.mixer.A_log",
        "backbone.layers.0.mixer.in_proj.weight",
        "backbone.norm_f.weight",
        HEAD,
    ];

    /// Renames elapid's names by `write`, checks that they are translated back, and returns the notices.
    fn back(names: &[&str], write: impl Fn(&str) -> String) -> Vec<String> {
        let stored: Vec<String> = names.iter().map(|name| write(name)).collect();
        let renaming = Renaming::to_own(stored.iter().map(String::as_str));
        let ours: Vec<String> = stored.iter().map(|name| renaming.apply(name)).collect();
        assert_eq!(ours, names, "{renaming:?}");
        renaming.notices()
    }

    #[test]
    fn names_as_they_should_be_stay() {
        assert!(back(&NAMES, str::to_owned).is_empty());
        assert!(back(&NAMES[..4], str::to_owned).is_empty());
        assert!(back(&NAMES, |name| name.replace("embeddings", "embedding")).is_empty());
        assert!(back(&[], str::to_owned).is_empty());
    }

    #[test]
    fn prefixes_that_all_have_are_taken_off_and_named() {
        for prefix in [
            "module.",
            "_orig_mod.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "model.",
            "model._orig_mod.module.",
            "a.b.c.",
        ] {
            for names in [&NAMES[..], &NAMES[..4]] {
                let notices = back(names, |name| format!("{prefix}{name}"));
                assert!(notices.len() == 1 && notices[0].contains(&format!("`{prefix}`")), "{notices:?}");
                let notices = back(&NAMES[..4], |name| format!("{prefix}{}", name.replace(BACKBONE, "")));
                assert!(notices.len() == 2 && notices[1].contains("`backbone.`"), "{notices:?}");
            }
        }
    }

    #[test]
    fn a_model_without_backbone() {
        let notices = back(&NAMES[..4], |name| name.replace(BACKBONE, ""));
        assert!(notices.len() == 1 && notices[0].contains("`backbone.`"), "{notices:?}");
        back(&NAMES[..4], |name| name.replace(BACKBONE, "").replace("embeddings", "embedding"));
        back(&NAMES, |name| name.replace(BACKBONE, ""));
    }

    #[test]
    fn wrappers_of_parts_are_taken_out() {
        for wrapped in ["backbone._orig_mod.", "backbone._fsdp_wrapped_module._orig_mod."] {
            let notices = back(&NAMES, |name| name.replace(BACKBONE, wrapped));
            assert!(notices.iter().any(|notice| notice.contains("`_orig_mod.`")), "{notices:?}");
        }
        back(&NAMES, |name| name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."));
    }

    #[test]
    fn a_prefix_that_some_have_stays() {
        let mixed = [EMBEDDING, "module.backbone.layers.0.mixer.A_log", "module.backbone.norm_f.weight"];
        let renaming = Renaming::to_own(mixed.into_iter());
        assert_eq!(renaming, Renaming::default());
        let names: Vec<(&str, &str)> = mixed.iter().map(|name| (*name, *name)).collect();
        let difference = difference(&NAMES[..4].iter().copied().collect(), &names).unwrap();
        for part in
            ["3 missing", "2 unexpected", "2 names fit without `module.`", "(`module.backbone.norm_f.weight` is there)"]
        {
            assert!(difference.contains(part), "no `{part}` in {difference}");
        }
    }

    #[test]
    fn another_model_stays_as_it_is() {
        let llama = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"];
        assert_eq!(Renaming::to_own(llama.into_iter()), Renaming::default());
        assert_eq!(Renaming::to_own(["a.b.c"].into_iter()), Renaming::default());
    }

    #[test]
    fn differences_show_the_first_few_and_how_many() {
        assert_eq!(difference(&NAMES.into_iter().collect(), &NAMES.map(|name| (name, name))), None);
        let many: Vec<String> = (0..100).map(|i| format!("decoder.block.{i}.weight")).collect();
        let names: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), name.as_str())).collect();
        let text = difference(&NAMES.into_iter().collect(), &names).unwrap();
        for part in ["5 missing", EMBEDDING, "100 unexpected: `decoder.block.0.weight`", "and 94 more"] {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
    }
}
