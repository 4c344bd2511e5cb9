//! Checks for what is known to break the `tokenizers` crate, before that crate sees a file.
//!
//! The crate trusts its file. A broken character map panics, a replacement of nothing panics later, and text that doubles at
//! each of fifty steps exhausts memory; no `Result` reports any of this. Each check here names the field and the fix. The
//! list comes from reading the crate and from mutated files. It is not a proof, so the command line also tries unknown files
//! in a child process (see [`super::trial`]).
//!
//! Fields are recognised by their names, not by `type`: the crate reads steps without a type, too.

mod charsmap;
mod growth;
mod model;
mod step;

use serde_json::Value;

use step::{Pattern, Step, shortened};

/// Changes whenever a check is added or removed: verdicts on a file hold for one version.
pub(super) const VERSION: u32 = 1;

/// Maximum nesting of sequences. Published files have one level.
const MAX_DEPTH: usize = 16;
/// Maximum steps of one pipeline.
const MAX_STEPS: usize = 1000;

/// Checks a parsed `tokenizer.json`.
///
/// # Errors
/// The first problem found: its field, the reason, and the fix.
pub(super) fn check(json: &Value) -> Result<(), String> {
    let normalizers = steps(json, "normalizer", "normalizers")?;
    let pre_tokenizers = steps(json, "pre_tokenizer", "pretokenizers")?;
    let decoders = steps(json, "decoder", "decoders")?;
    let processors = steps(json, "post_processor", "processors")?;

    model::check(&json["model"])?;
    added_tokens(&json["added_tokens"])?;
    for step in normalizers.iter().chain(&pre_tokenizers).chain(&decoders) {
        patterns(step)?;
    }
    for step in &normalizers {
        normalizer(step)?;
    }
    replaced_nothing(&normalizers, &pre_tokenizers)?;
    for step in &pre_tokenizers {
        if step.is("FixedLength") && step.fields.get("length").and_then(Value::as_u64) == Some(0) {
            return Err(step.error("length", "is 0: pieces of no characters never end; use 1 or more"));
        }
    }
    for step in &decoders {
        decoder(step)?;
    }
    templates(&processors)?;
    growth::check(&normalizers, &pre_tokenizers)?;
    growth::check(&decoders, &[])
}

/// Checks a tokenizer that the crate has read, for problems that need its normalizer.
pub(super) fn check_loaded(tokenizer: &tokenizers::Tokenizer) -> Result<(), String> {
    let empty = |id| tokenizer.id_to_token(id).is_some_and(|text| text.is_empty());
    match tokenizer.get_added_tokens_decoder().into_iter().find(|&(id, _)| empty(id)) {
        Some((id, token)) => Err(format!(
            "added_tokens: the normalizer makes nothing of {:?} (id {id}), which would match everywhere; set its \
             `normalized` to false",
            shortened(&token.content)
        )),
        None => Ok(()),
    }
}

/// The steps of a pipeline, with nested sequences flattened.
fn steps<'a>(json: &'a Value, section: &str, list: &str) -> Result<Vec<Step<'a>>, String> {
    let mut found = Vec::new();
    flatten(&json[section], section.to_owned(), list, 0, &mut found)?;
    Ok(found)
}

fn flatten<'a>(
    value: &'a Value,
    path: String,
    list: &str,
    depth: usize,
    found: &mut Vec<Step<'a>>,
) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let fields = value.as_object().ok_or_else(|| format!("{path} is not an object; wanted {{\"type\": …}} or null"))?;
    match fields.get(list).and_then(Value::as_array) {
        Some(_) if depth == MAX_DEPTH => {
            Err(format!("{path}: sequences are nested more than {MAX_DEPTH} deep; write their steps in one"))
        }
        Some(inner) => inner
            .iter()
            .enumerate()
            .try_for_each(|(i, value)| flatten(value, format!("{path}.{list}[{i}]"), list, depth + 1, found)),
        None if found.len() == MAX_STEPS => Err(format!("{path}: there are more than {MAX_STEPS} steps")),
        None => {
            found.push(Step { path, fields });
            Ok(())
        }
    }
}

/// Checks a pattern of any section.
fn patterns(step: &Step<'_>) -> Result<(), String> {
    if let Some(Pattern::Regex(regex)) = step.pattern()
        && keeps_out(regex)
    {
        return Err(step.error("pattern", "has \\K, which moves the start of a match; use a look-behind, (?<=…)"));
    }
    match (step.pattern(), step.text("content")) {
        (Some(Pattern::String("")), Some(content)) if !content.is_empty() => {
            Err(step.error("pattern", "is an empty string, found between all characters; remove the step"))
        }
        _ => Ok(()),
    }
}

/// Whether `\K` is in a regex.
fn keeps_out(regex: &str) -> bool {
    let mut chars = regex.chars();
    while let Some(c) = chars.next() {
        if c == '\\' && chars.next() == Some('K') {
            return true;
        }
    }
    false
}

fn normalizer(step: &Step<'_>) -> Result<(), String> {
    if step.text("prepend") == Some("") {
        return Err(step.error("prepend", "is empty, which loses track of the first character; remove the step"));
    }
    if step.is("Precompiled") {
        charsmap::check(step.text("precompiled_charsmap")).map_err(|what| {
            let fix = "convert the tokenizer again, or remove the step if its character map is empty";
            step.error("precompiled_charsmap", format_args!("{what}; {fix}"))
        })?;
    }
    Ok(())
}

/// Text inserted at the beginning by an empty match belongs to no character of the original. Steps that rewrite the whole
/// text then count one character too many and index past the end.
fn replaced_nothing(normalizers: &[Step<'_>], pre_tokenizers: &[Step<'_>]) -> Result<(), String> {
    let rewrites = |step: &Step<'_>| {
        let replaces = step.pattern().is_some() || step.fields.contains_key("prepend");
        !replaces && !step.is("Metaspace")
    };
    let split_rewrites = pre_tokenizers.iter().any(|step| step.is("ByteLevel"));
    for (i, step) in normalizers.iter().enumerate() {
        let Some(pattern) = step.pattern() else { continue };
        let inserts = step.text("content").is_some_and(|content| !content.is_empty()) && pattern.can_be_nothing();
        if inserts && (split_rewrites || normalizers[i + 1..].iter().any(rewrites)) {
            return Err(step.error(
                "pattern",
                "can match nothing, and a later step rewrites what was put there; use a pattern of at least one \
                 character, or a Prepend",
            ));
        }
    }
    Ok(())
}

fn decoder(step: &Step<'_>) -> Result<(), String> {
    let doubles = "is an empty string, found between all characters; remove the step";
    if step.text("suffix") == Some("") {
        return Err(step.error("suffix", doubles));
    }
    if step.text("word_delimiter_token") == Some("") {
        return Err(step.error("word_delimiter_token", doubles));
    }
    Ok(())
}

/// Checks the tokens that a `TemplateProcessing` puts around a text.
fn templates(processors: &[Step<'_>]) -> Result<(), String> {
    let mut templates = 0;
    for step in processors {
        let Some(single) = step.fields.get("single").and_then(Value::as_array) else { continue };
        templates += 1;
        if templates > 1 {
            return Err(format!(
                "{}: a second template cannot read what the first one makes; put all its tokens in one",
                step.path
            ));
        }
        template(step, single)?;
    }
    Ok(())
}

fn template(step: &Step<'_>, single: &[Value]) -> Result<(), String> {
    let special = step.fields.get("special_tokens").and_then(Value::as_object);
    let mut texts = 0;
    for piece in single {
        match (piece.pointer("/Sequence/id"), piece.pointer("/SpecialToken/id").and_then(Value::as_str)) {
            (Some(id), _) if id == "B" => {
                return Err(step.error("single", "has the sequence B, and one text has A only; use A"));
            }
            (Some(_), _) => texts += 1,
            (None, Some(id)) if !special.is_some_and(|special| special.contains_key(id)) => {
                return Err(step.error(
                    "single",
                    format_args!("has the token {:?}, which special_tokens does not have; add it there", shortened(id)),
                ));
            }
            _ => {}
        }
    }
    if texts > 1 {
        return Err(step.error("single", format_args!("has the text {texts} times; keep one of them")));
    }
    for (name, token) in special.into_iter().flatten() {
        let count = |field: &str| token[field].as_array().map_or(0, Vec::len);
        if count("ids") != count("tokens") {
            let what =
                format_args!("has {} ids and {} tokens for {:?}", count("ids"), count("tokens"), shortened(name));
            return Err(step.error("special_tokens", format_args!("{what}; give it as many of each")));
        }
    }
    Ok(())
}

/// A token that strips spaces to its right may leave nothing of a following token of spaces that strips to its left.
fn added_tokens(tokens: &Value) -> Result<(), String> {
    let tokens = tokens.as_array().map_or(&[][..], Vec::as_slice);
    let takes = |token: &Value, side: &str| token[side] == true;
    let Some(right) = tokens.iter().position(|token| takes(token, "rstrip")) else { return Ok(()) };
    let spaces = |token: &Value| token["content"].as_str().is_some_and(|text| text.trim().is_empty());
    match tokens.iter().position(|token| takes(token, "lstrip") && !takes(token, "rstrip") && spaces(token)) {
        Some(left) => Err(format!(
            "added_tokens[{left}].lstrip: a token of spaces that takes the spaces before it cannot stand after \
             added_tokens[{right}], which takes those after it; set lstrip to false"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
