//! The `model` section: what panics while it is built, overflows the stack, or takes unbounded time.

use serde_json::{Map, Value};

use super::shortened;

/// Maximum bytes of a Unigram token. Its trie has one node per byte, and is dropped by recursion.
const MAX_UNIGRAM_TOKEN: usize = 2048;
/// Maximum bytes added to each character of a word, and so copied for each.
const MAX_AFFIX: usize = 64;
/// Maximum characters of a WordPiece word. The time for an unknown word is cubic in them.
const MAX_WORD: u64 = 10_000;

pub(super) fn check(model: &Value) -> Result<(), String> {
    let model = match model {
        // The crate reports a missing model itself.
        Value::Null => return Ok(()),
        model => model.as_object().ok_or("model is not an object; wanted {\"type\": …}")?,
    };
    affixes(model)?;
    if let Some(max) = model.get("max_input_chars_per_word").and_then(Value::as_u64)
        && max > MAX_WORD
    {
        return Err(format!(
            "model.max_input_chars_per_word is {max}: an unknown word of that length would take time without end; use \
             {MAX_WORD} or less (100 is usual)"
        ));
    }
    if let Some(tokens) = model.get("vocab").and_then(Value::as_array) {
        unigram(tokens)?;
    }
    merges(model)
}

fn affixes(model: &Map<String, Value>) -> Result<(), String> {
    for field in ["continuing_subword_prefix", "end_of_word_suffix"] {
        let len = model.get(field).and_then(Value::as_str).map_or(0, str::len);
        if len > MAX_AFFIX {
            return Err(format!(
                "model.{field} has {len} bytes, put beside each character; use {MAX_AFFIX} or less (## or </w> is usual)"
            ));
        }
    }
    Ok(())
}

fn unigram(tokens: &[Value]) -> Result<(), String> {
    let length = |token: &Value| token[0].as_str().map_or(0, str::len);
    match tokens.iter().position(|token| length(token) > MAX_UNIGRAM_TOKEN) {
        Some(i) => Err(format!(
            "model.vocab[{i}] has {} bytes, and a token of a Unigram model may have {MAX_UNIGRAM_TOKEN}; make it an \
             added token",
            length(&tokens[i])
        )),
        None => Ok(()),
    }
}

/// The crate joins the tokens of a merge in a buffer as long as the longest token, without the second one's prefix.
fn merges(model: &Map<String, Value>) -> Result<(), String> {
    let Some(merges) = model.get("merges").and_then(Value::as_array) else { return Ok(()) };
    let Some(vocab) = model.get("vocab").and_then(Value::as_object) else { return Ok(()) };
    let longest = vocab.keys().map(String::len).max().unwrap_or(0);
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or("");
    for (i, merge) in merges.iter().enumerate() {
        let Some((first, second)) = pair(merge) else { continue };
        if !second.is_char_boundary(prefix.len()) {
            return Err(format!(
                "model.merges[{i}] goes on with {:?}, which does not begin with continuing_subword_prefix ({prefix:?}); \
                 correct one of them",
                shortened(second)
            ));
        }
        if first.len() + second.len() - prefix.len() > longest {
            return Err(format!(
                "model.merges[{i}] makes {:?} longer than any token of model.vocab; remove the merge or add the token",
                shortened(&format!("{first}{}", &second[prefix.len()..]))
            ));
        }
    }
    Ok(())
}

/// The two tokens of a merge, `["a", "b"]` or `"a b"`.
fn pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::Array(pair) => Some((pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        merge => merge.as_str()?.split_once(' '),
    }
}
