//! Loads a model and continues a text: `cargo run --release -p elapid --example generate -- [DIR] [PROMPT]`.

use std::io::Write;
use std::path::Path;

use elapid::generate::{Generator, Sampling};
use elapid::tokenizer::{SpecialTokens, Tokenizer};
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
    let ids = tokenizer.encode_prompt(&prompt)?;
    sequence.read(&ids)?;

    print!("{prompt}");
    let mut text = tokenizer.stream(SpecialTokens::Skip).after(&ids)?;
    for _ in 0..200 {
        let id = sequence.next_token()?;
        if tokenizer.end_ids().contains(&id) {
            break;
        }
        print!("{}", text.push(id)?);
        std::io::stdout().flush().ok();
    }
    println!("{}", text.finish()?);
    Ok(())
}
