//! Reads a text of any length through a state of fixed size, and measures how well each part was predicted:
//! `cargo run --release -p elapid --example stream -- FILE`.

use elapid::Layout;
use elapid::evaluate::Summary;
use elapid::{Error, Result, embedded};

/// Positions read at a time.
const CHUNK: usize = 1024;

fn main() -> Result<()> {
    let text = match std::env::args().nth(1) {
        Some(path) => std::fs::read(&path).map_err(|error| Error::Argument(format!("{path}: {error}")))?,
        None => include_bytes!("../src/lm.rs").to_vec(),
    };
    let (model, tokenizer) = (embedded::model()?, embedded::tokenizer());
    let tokens = tokenizer.encode(&text)?;

    let mut state = model.zero_state(1)?;
    println!("the state takes {} bytes, whatever was read", state.bytes());
    for part in tokens.windows(2).collect::<Vec<_>>().chunks(CHUNK) {
        let inputs: Vec<u32> = part.iter().map(|pair| pair[0]).collect();
        let targets: Vec<i32> = part.iter().map(|pair| pair[1] as i32).collect();
        let cx = model.inference(Layout::new(1, inputs.len()));
        let (loss, next) = model.loss(&cx, &inputs, &targets, &state, false)?;
        state = next;
        let part = Summary::of(&[loss.nll.as_slice().to_vec()]);
        println!("after {:>8} bytes: {:.3} nats a byte", state.position(), part.loss());
    }
    Ok(())
}
