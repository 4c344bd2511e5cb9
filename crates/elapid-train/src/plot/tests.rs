use std::fs;

use tempfile::tempdir;

use super::*;

/// A run that learns: falling loss with noise, a validation every 100 steps.
fn run(steps: u64) -> Vec<Record> {
    let mut noise = 7_u64;
    (1..=steps / 10)
        .map(|i| {
            let step = i * 10;
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let jitter = (noise >> 40) as f64 / f64::from(1 << 24) - 0.5;
            let loss = 1.35 + 4.2 * (-(step as f64) / 120.0).exp() + 0.6 * (-(step as f64) / 900.0).exp();
            let val_loss = (step % 100 == 0).then_some(loss + 0.08 + step as f64 * 2e-5);
            let figures = val_loss.into_iter().map(|loss| (metrics::VAL_LOSS.to_owned(), loss)).collect();
            Record { step, loss: loss + 0.16 * jitter, figures, ..Record::default() }
        })
        .collect()
}

fn decode(png: &[u8]) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width, info.height, pixels)
}

#[test]
fn a_loss_curve_has_its_words() {
    let chart = loss_curve(&run(2000), "Tiny Shakespeare, 1.1 M parameters").unwrap();
    for word in
        ["Tiny Shakespeare", "step", "loss, nats per token", "training", "held out", "2000", "<text", "sans-serif"]
    {
        assert!(chart.svg.contains(word), "{word}");
    }
    assert!(!chart.svg.contains("<image"));
    let (width, height, pixels) = decode(&chart.png);
    assert_eq!((width, height), (1200, 700));
    let coloured = pixels.chunks_exact(3).filter(|p| p[2] > p[0].saturating_add(80)).count();
    assert!(coloured > 1000, "{coloured} blue pixels of the training loss");
    if let Some(dir) = std::env::var_os("ELAPID_PLOT_DIR") {
        chart.save(Path::new(&dir), "loss").unwrap();
    }
}

#[test]
fn many_series_on_a_log_axis() {
    let curve = |k: usize| -> Vec<(f64, f64)> {
        (0..30).map(|i| 2_f64.powi(i)).map(|x| (x, (1.0 + k as f64 / 2.0) * x.powf(-0.1 - 0.02 * k as f64))).collect()
    };
    let series: Vec<Series> = (0..8)
        .map(|k| Series {
            name: format!("width {}", 64 << k),
            points: curve(k),
            look: [Look::Line, Look::Dots, Look::Thin][k % 3],
            colour: k,
            last_value: true,
        })
        .collect();
    let options = Options {
        title: "Scaling".into(),
        x_label: "tokens".into(),
        y_label: "loss".into(),
        x_log: true,
        ..Options::default()
    };
    let chart = line_chart(&series, &options).unwrap();
    assert!(chart.svg.contains("width 8192") && chart.svg.contains("100M") && chart.svg.contains("\n1M\n"));
    if let Some(dir) = std::env::var_os("ELAPID_PLOT_DIR") {
        chart.save(Path::new(&dir), "scaling").unwrap();
    }
}

#[test]
fn gaps_and_lone_points_are_drawn() {
    let points = vec![(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, f64::INFINITY)];
    let series = Series { name: "a".into(), points, last_value: true, ..Series::default() };
    let chart = line_chart(&[series], &Options::default()).unwrap();
    assert_eq!(chart.svg.matches("<circle").count(), 2);
    assert!(chart.svg.contains("1.000"), "the last value that there is");
    loss_curve(&run(10), "one record").unwrap();
}

#[test]
fn nothing_to_draw_is_an_error() {
    let nan = Series { points: vec![(1.0, f64::NAN)], ..Series::default() };
    for series in [&[][..], &[nan][..]] {
        let error = line_chart(series, &Options { title: "T".into(), ..Options::default() }).unwrap_err().to_string();
        assert_eq!(error, "cannot draw `T`: there is no finite point to draw");
    }
    let point = Series { points: vec![(1.0, 1.0)], ..Series::default() };
    let options = Options { size: (0, 700), ..Options::default() };
    assert!(line_chart(std::slice::from_ref(&point), &options).is_err());
    for size in [(1, 1), (50, 50), (300, 200)] {
        line_chart(std::slice::from_ref(&point), &Options { size, ..Options::default() }).unwrap();
    }
}

#[test]
fn a_run_is_drawn_from_its_metrics() {
    let dir = tempdir().unwrap();
    let mut writer = metrics::Writer::open(&dir.path().join("metrics.jsonl"), 0).unwrap();
    run(300).iter().for_each(|record| writer.write(record).unwrap());
    plot_run(dir.path(), "run").unwrap();
    assert!(fs::read(dir.path().join("loss.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(fs::read_to_string(dir.path().join("loss.svg")).unwrap().contains("</svg>"));
    assert!(plot_run(&dir.path().join("none"), "x").is_err());
}

#[test]
fn smoothing_keeps_the_ends_honest() {
    let line: Vec<(f64, f64)> = (0..600).map(|i| (f64::from(i), f64::from(600 - i))).collect();
    let smoothed = smooth(&line);
    assert_eq!(smoothed[0], line[0]);
    assert_eq!(smoothed[300], line[300], "a line stays a line");
    assert_eq!(smoothed.len(), 600);
    assert_eq!(smooth(&[]), []);
}

#[test]
fn names_beside_dots_do_not_overlap() {
    // Four points at nearly the same place, and one at the right end.
    let at = [(10.0, 1.0), (10.5, 1.001), (11.0, 0.999), (10.2, 1.0005), (1e6, 1.2)];
    let series: Vec<Series> = (0..at.len())
        .map(|k| Series { name: format!("name{k}"), points: vec![at[k]], look: Look::Named, ..Series::default() })
        .collect();
    let chart = line_chart(&series, &Options { x_log: true, ..Options::default() }).unwrap();
    let height = |name: &str| -> f64 {
        let before = &chart.svg[..chart.svg.find(name).unwrap()];
        let y = before.rfind(" y=\"").unwrap() + 4;
        before[y..].split('"').next().unwrap().parse().unwrap()
    };
    let mut heights: Vec<f64> = (0..4).map(|k| height(&format!("name{k}"))).collect();
    heights.sort_by(f64::total_cmp);
    assert!(heights.windows(2).all(|pair| pair[1] - pair[0] >= 18.0), "{heights:?}");
    assert_eq!(chart.svg.matches("<circle").count(), 5);
    assert!((0..5).all(|k| chart.svg.matches(&format!("name{k}")).count() == 1), "no legend");
}
