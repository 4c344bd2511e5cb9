//! `elapid bench`, on sizes that take no time.

use serde_json::Value;

use crate::elapid;

fn positive(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value[key].as_f64().is_some_and(|x| x > 0.0 && x.is_finite()), "{key}: {}", value[key]);
    }
}

#[test]
fn scan_beside_the_loop() {
    let arguments = ["bench", "scan", "--b", "2", "--l", "70", "--d", "48", "--n", "5", "--reps", "2"];
    let found = elapid(&[&arguments[..], &["--compare", "naive", "--json"]].concat()).json();
    positive(&found, &["forward_ms", "backward_ms", "forward_backward_ms", "elements_per_second"]);
    positive(
        &found,
        &["exp_ceiling_per_second", "share_of_exp_ceiling", "forward_speedup", "forward_backward_speedup"],
    );
    positive(&found["naive"], &["forward_ms", "backward_ms"]);
    assert_eq!(found["exps_per_element"], 7);
    let text = elapid(&arguments);
    assert!(text.text().contains("M elements/s") && !text.text().contains("naive"), "{}", text.stdout);
    for rule in ["zoh", "bilinear"] {
        elapid(&[&arguments[..], &["--rule", rule]].concat()).text();
    }
    elapid(&["bench", "scan", "--rule", "euler"]).fails(2, &["--rule", "bilinear"]);
    elapid(&["bench", "scan", "--n", "0"]).fails(2, &["--n"]);
}

#[test]
fn attention_alone() {
    let arguments = ["bench", "attention", "--device", "cpu", "--b", "2", "--heads", "4", "--l", "50", "--width", "8"];
    for more in [&[][..], &["--kv-heads", "2", "--window", "7"], &["--bidirectional", "--window", "60"]] {
        let found = elapid(&[&arguments[..], &["--reps", "2", "--json"], more].concat()).json();
        positive(&found, &["forward_ms", "forward_backward_ms", "tflops", "forward_backward_tflops"]);
        let text = elapid(&[&arguments[..], &["--reps", "1"], more].concat());
        assert!(text.text().contains("TFLOP/s"), "{}", text.stdout);
    }
    elapid(&["bench", "attention", "--device", "cpu", "--heads", "4", "--kv-heads", "3"]).fails(2, &["--kv-heads"]);
}

#[test]
fn models_of_any_size() {
    let size = ["--model-size", "32x2", "--random", "--vocab", "40"];
    for (what, more) in [
        ("decode", &["--batch", "2", "--reps", "3"][..]),
        ("prefill", &["--length", "40", "--chunk", "16", "--reps", "1"]),
        ("train", &["--batch", "2", "--length", "16", "--reps", "1"]),
        ("train", &["--batch", "2", "--length", "16", "--reps", "1", "--recompute"]),
    ] {
        let found = elapid(&[&["bench", what, "--json"], &size[..], more].concat()).json();
        assert_eq!(found["bench"], what);
        positive(&found, &["tokens_per_second", "ms_per_step", "gflops", "percent_of_gflops_ceiling"]);
        if cfg!(target_os = "linux") {
            positive(&found, &["peak_rss_bytes"]);
        }
        let text = elapid(&[&["bench", what], &size[..], more].concat());
        assert!(text.text().contains("tokens/s"), "{}", text.stdout);
    }
    elapid(&["bench", "decode", "--model-size", "big"]).fails(2, &["big", "130m"]);
}
