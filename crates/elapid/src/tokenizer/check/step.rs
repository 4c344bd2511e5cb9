//! A step of a pipeline, and what its pattern matches.

use fancy_regex::Expr;
use serde_json::{Map, Value};

/// A part of a pipeline, such as one normalizer of a sequence.
pub(super) struct Step<'a> {
    /// Its path in the file, such as `normalizer.normalizers[2]`.
    pub(super) path: String,
    pub(super) fields: &'a Map<String, Value>,
}

impl<'a> Step<'a> {
    pub(super) fn text(&self, field: &str) -> Option<&'a str> {
        self.fields.get(field)?.as_str()
    }

    pub(super) fn is(&self, kind: &str) -> bool {
        self.text("type") == Some(kind)
    }

    pub(super) fn error(&self, field: &str, what: impl std::fmt::Display) -> String {
        format!("{}.{field} {what}", self.path)
    }

    /// The pattern of a `Replace` or `Split`.
    pub(super) fn pattern(&self) -> Option<Pattern<'a>> {
        let pattern = self.fields.get("pattern")?.as_object()?;
        let text = |kind| pattern.get(kind).and_then(Value::as_str);
        text("String").map(Pattern::String).or_else(|| text("Regex").map(Pattern::Regex))
    }
}

/// The pattern of a `Replace` or `Split`, parsed.
#[derive(Clone, Copy)]
pub(super) enum Pattern<'a> {
    String(&'a str),
    Regex(&'a str),
}

impl Pattern<'_> {
    /// Whether a match can be empty. A regex that does not parse is refused by the crate.
    pub(super) fn can_be_nothing(self) -> bool {
        match self {
            Self::String(text) => text.is_empty(),
            Self::Regex(regex) => Expr::parse_tree(regex).is_ok_and(|tree| can_be_nothing(&tree.expr)),
        }
    }
}

/// Whether a match of the expression can be empty; yes if that depends on the text.
pub(super) fn can_be_nothing(expr: &Expr) -> bool {
    match expr {
        Expr::Any { .. } => false,
        Expr::Literal { val, .. } => val.is_empty(),
        Expr::Concat(parts) => parts.iter().all(can_be_nothing),
        Expr::Alt(branches) => branches.iter().any(can_be_nothing),
        Expr::Group(child) | Expr::AtomicGroup(child) => can_be_nothing(child),
        Expr::Repeat { child, lo, .. } => *lo == 0 || can_be_nothing(child),
        Expr::Delegate { size, .. } => *size == 0,
        Expr::Conditional { true_branch, false_branch, .. } => {
            can_be_nothing(true_branch) || can_be_nothing(false_branch)
        }
        _ => true,
    }
}

/// A text of the file, short enough for a message.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
