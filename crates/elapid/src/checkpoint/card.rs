//! Files for users of a model: `generation_config.json` and the model card, `README.md`.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::ModelConfig;

/// The model card's name.
pub(super) const CARD: &str = "README.md";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";

/// A card with this line was written by elapid and is overwritten; any other is left alone.
const MARK: &str = "<!-- Written by elapid, again at each save. Without this line, elapid leaves the file alone. -->";

/// The contents of a model card besides the model's sizes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Card {
    /// How the model was trained, as Markdown.
    pub training: Option<String>,
    /// Whether the directory has a tokenizer.
    pub tokenizer: bool,
}

/// `generation_config.json`: the ids that begin, end and pad a text.
pub(super) fn generation_config(config: &ModelConfig, end_ids: Option<&[u32]>) -> Value {
    let own: Vec<u32> = config.eos_token_id.into_iter().collect();
    let eos = match end_ids.unwrap_or(&own) {
        [] => None,
        [one] => Some(json!(one)),
        several => Some(json!(several)),
    };
    let ids = [
        ("bos_token_id", config.bos_token_id.map(Value::from)),
        ("eos_token_id", eos),
        ("pad_token_id", config.pad_token_id.map(Value::from)),
    ];
    Value::Object(ids.into_iter().filter_map(|(key, id)| Some((key.to_owned(), id?))).collect::<Map<_, _>>())
}

/// Whether a directory has no card, or one that elapid wrote.
pub(super) fn is_ours(dir: &Path) -> bool {
    let path = dir.join(CARD);
    match fs::symlink_metadata(&path) {
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        Ok(data) if !data.is_file() => false,
        Ok(_) => {
            let mut head = Vec::new();
            let read = File::open(&path).and_then(|file| file.take(4096).read_to_end(&mut head));
            read.is_ok() && String::from_utf8_lossy(&head).contains(MARK)
        }
    }
}

/// Writes the card.
pub(super) fn write(
    card: &Card,
    config: &ModelConfig,
    parameters: u64,
    file: &mut BufWriter<File>,
) -> std::io::Result<()> {
    let portable = config.is_portable();
    let library = if portable { "transformers" } else { "elapid" };
    let task = if card.tokenizer { "pipeline_tag: text-generation\n" } else { "" };
    let (layers, width, vocabulary) = (config.n_layer(), config.d_model(), config.vocab_size);
    let names = config.stack.model.layers.join(", ");
    write!(
        file,
        "---\nlibrary_name: {library}\n{task}tags:\n- mamba\n- state-space-model\n- elapid\n---\n\n{MARK}\n\n\
         # {names}, {parameters} parameters\n\n\
         Layers: {layers}, width: {width}, vocabulary: {vocabulary}.\n"
    )?;
    if let Some(training) = &card.training {
        write!(file, "\n## Training\n\n{}\n", training.trim())?;
    }
    let prompt = if card.tokenizer { "\"A text to continue\"" } else { "--prompt-tokens 1,2,3" };
    write!(file, "\n## Use\n\n```sh\nelapid generate --model . {prompt}\n```\n")?;
    if portable {
        let tokenizer = "tokenizer = AutoTokenizer.from_pretrained(\".\")\n\
                         ids = tokenizer(\"A text to continue\", return_tensors=\"pt\").input_ids\n\
                         print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0]))\n";
        let (import, text) = if card.tokenizer { (", AutoTokenizer", tokenizer) } else { ("", "") };
        write!(
            file,
            "\n```python\nfrom transformers import AutoModelForCausalLM{import}\n\n\
             model = AutoModelForCausalLM.from_pretrained(\".\")\n{text}```\n"
        )?;
    }
    Ok(())
}
