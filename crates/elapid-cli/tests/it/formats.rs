//! Models in the formats of other programs, through every command that reads one. Their numbers are compared with the references' by
//! `cargo xtask golden`.

use crate::{elapid, file, golden, ids};

/// A recorded folder: parameters, a prompt, and the likeliest tokens after it. RetNet's decays are no tensors of its file.
const MODELS: [(&str, u64, &str, [u64; 12]); 6] = [
    ("gla", 29216, "67,23,58,18,29,60,28,9", [30, 1, 31, 35, 62, 33, 44, 67, 43, 33, 12, 65]),
    ("retnet", 40960, "12,31,12,54,60,21,18,42", [53, 44, 22, 54, 25, 65, 27, 70, 51, 42, 55, 65]),
    ("hgrn2", 36832, "50,28,52,31,63,60,58,5", [2, 63, 40, 11, 11, 11, 11, 11, 54, 31, 5, 31]),
    ("linear_attn", 29680, "70,59,6,25,14,67,36,54", [67, 26, 12, 30, 7, 42, 9, 68, 29, 41, 45, 65]),
    ("fla-mamba2", 20856, "42,28,44,39,55,63,69,2", [47, 47, 47, 28, 47, 47, 13, 42, 38, 28, 42, 47]),
    ("mamba2-hybrid", 83000, "47,44,0,12,12,36,30,79", [26, 6, 13, 76, 48, 12, 28, 1, 12, 47, 45, 48]),
];

#[test]
fn every_command_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    for (name, stored, prompt, likeliest) in MODELS {
        let model = golden(name).display().to_string();
        let found = elapid(&["inspect", "--model", &model, "--json"]).json();
        let constants = if name == "retnet" { 3 * 2 } else { 0 };
        assert_eq!(found["parameters"], stored + constants, "{name}");
        let more = ["--prompt-tokens", prompt, "--max-tokens", "12", "--ignore-eos", "--greedy", "--json"];
        let found = elapid(&[&["generate", "--model", &model][..], &more].concat()).json();
        assert_eq!(ids(&found["tokens"]), likeliest, "{name}");
        let path = file(&dir, "tokens.json", format!("[[{prompt}],[3,1]]"));
        let found = elapid(&["eval", "--model", &model, "--tokens", &path, "--json"]).json();
        assert!(found["tokens"] == 8 && found["loss"].as_f64().is_some_and(|loss| loss > 1.0), "{name}: {found}");
    }
}
