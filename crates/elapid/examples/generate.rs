//! Loads a model and continues a text: `cargo run --release -p elapid --example generate -- [DIR] [PROMPT]`.

use std::io::Write;
use std::path::Path;

use elapid::generate::{Generator, Sampling};
use elapid::text::Utf8Stream;
use elapid::tokenizer::Tokenizer;
use elapid::{LanguageModel, Result, embedded};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (model, tokenizer) = match arguments.next() {
        Some(dir) => (LanguageModel::open(Path::new(&dir))?, Tokenizer::open(&dir)?),
        None => (embedded::model()?, embedded::tokenizer()),
    };
    let prompt = arguments.next().unwrap_or_else(|| "ROMEO:\n".to_owned());

    let sampling = Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::default() };
    let mut sequence = Generator::new(&model, sampling, 1)?;
    sequence.read(&tokenizer.encode(&prompt)?)?;

    print!("{prompt}");
    let mut text = Utf8Stream::new();
    for _ in 0..200 {
        let id = sequence.next_token()?;
        print!("{}", text.push(tokenizer.token_bytes(id)?));
        std::io::stdout().flush().ok();
    }
    println!("{}", text.finish());
    Ok(())
}
