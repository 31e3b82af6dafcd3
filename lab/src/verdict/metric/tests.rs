use proptest::prelude::*;

use super::*;

fn metric(tolerance: &str, better: Better) -> Metric {
    let (name, regex) = ("rate".to_owned(), "([0-9]+)".parse().unwrap());
    Metric { name, regex, worse_than_control: tolerance.parse().unwrap(), better }
}

fn samples(numbers: &[f64]) -> Vec<Sample> {
    numbers.iter().map(|number| Sample::try_from(*number).unwrap()).collect()
}

fn found_of(tolerance: &str, better: Better, control: &[f64], patched: &[f64]) -> Found {
    compare_metric(&metric(tolerance, better), &samples(control), &samples(patched)).found
}

/// What it is, the tolerance, which is better, samples of control and patched clone, what they say.
type Said = (&'static str, &'static str, Better, &'static [f64], &'static [f64], Found);

#[test]
fn what_samples_say() {
    use Better::{Higher, Lower};
    use Found::{AsGood, Undecided, Worse};
    const STEADY: &[f64] = &[100.0, 101.0, 99.0, 100.5, 99.5];
    // Half of the machine's time is somebody else's: far apart on both.
    const WILD: &[f64] = &[100.0, 30.0, 190.0, 60.0, 140.0];
    let table: &[Said] = &[
        ("the same", "20%", Higher, STEADY, STEADY, AsGood),
        ("a little worse", "20%", Higher, STEADY, &[85.0, 86.0, 84.0, 85.5, 87.0], AsGood),
        ("far worse", "20%", Higher, STEADY, &[50.0, 51.0, 49.0, 52.0, 48.0], Worse),
        ("far better", "20%", Higher, STEADY, &[150.0, 151.0, 149.0, 152.0, 148.0], AsGood),
        ("at the tolerance", "20%", Higher, STEADY, &[80.0, 80.5, 79.5, 80.2, 79.8], Undecided),
        ("longer is worse", "20%", Lower, STEADY, &[150.0, 151.0, 149.0, 152.0, 148.0], Worse),
        ("shorter is better", "20%", Lower, STEADY, &[50.0, 51.0, 49.0, 52.0, 48.0], AsGood),
        ("one slow time of five", "20%", Higher, STEADY, &[99.0, 10.0, 101.0, 100.0, 98.0], Undecided),
        ("medians apart, spread explains it", "20%", Higher, WILD, &[60.0, 20.0, 150.0, 90.0, 40.0], Undecided),
        ("wild on both", "20%", Higher, WILD, WILD, Undecided),
        ("a wide tolerance tells", "90%", Higher, WILD, WILD, AsGood),
        ("three are too few, however clear", "20%", Higher, &STEADY[..3], &[1.0, 2.0, 3.0], Undecided),
        ("four are not", "20%", Higher, &STEADY[..4], &[1.0, 2.0, 3.0, 4.0], Worse),
        ("none", "20%", Higher, &[], &[], Undecided),
        ("one side only", "20%", Higher, STEADY, &[], Undecided),
        ("a count that is the same", "0%", Lower, &[12.0; 5], &[12.0; 5], AsGood),
        ("a count that is one more", "0%", Lower, &[12.0; 5], &[13.0; 5], Worse),
        ("no errors before, none now", "0%", Lower, &[0.0; 5], &[0.0; 5], AsGood),
        ("no errors before, some now", "10%", Lower, &[0.0; 5], &[2.0; 5], Worse),
        ("below zero, higher is better", "20%", Higher, &[-10.0; 5], &[-11.0; 5], AsGood),
        ("far below zero", "20%", Higher, &[-10.0; 5], &[-15.0; 5], Worse),
    ];
    for (what, tolerance, better, control, patched, wanted) in table {
        assert_eq!(found_of(tolerance, *better, control, patched), *wanted, "{what}");
    }
}

#[test]
fn reasons_state_medians_spread_and_counts() {
    let report = |patched: &[f64]| {
        let control = samples(&[20.0, 20.4, 19.8, 20.1, 20.2]);
        compare_metric(&metric("20%", Better::Higher), &control, &samples(patched))
    };
    let worse = report(&[10.0, 11.0, 10.5, 10.2, 12.0]);
    assert_eq!(
        worse.reason(),
        "rate is 47.8% worse than the control's, 20% is allowed: median 10.5 ±0.500 (n 5) against 20.1 ±0.100 (n 5)"
    );
    assert_eq!(report(&[20.0; 5]).reason(), "");
    let few = report(&[20.0, 21.0]).reason();
    assert!(few.starts_with("rate cannot be compared: 2 samples against 5, at least 4"), "{few}");
    let wide = report(&[20.0, 5.0, 16.0, 30.0, 10.0]).reason();
    assert!(wide.contains("cannot be told from 5 and 5 samples so far apart: median 16.0 ±6.00"), "{wide}");
    let json = serde_json::to_value(&worse).unwrap();
    assert_eq!((&json["found"], &json["control"]["median"]), (&"worse".into(), &20.1.into()));
    assert_eq!(serde_json::from_value::<MetricReport>(json).unwrap(), worse);
}

#[test]
fn orders_are_counted_as_in_mann_and_whitneys_tables() {
    assert_eq!(orders(2, 2), [1.0, 1.0, 2.0, 1.0, 1.0]);
    assert_eq!(orders(4, 4).iter().sum::<f64>(), 70.0);
    // Critical values of the one-sided test at 0.025 (Mann and Whitney 1947; Siegel 1956, table K): the largest number of pairs lost.
    for (n, m, lost) in [(4, 4, 0), (5, 5, 2), (7, 7, 8), (10, 10, 23), (20, 20, 127), (5, 8, 6)] {
        assert!(is_beyond_chance(n, m, n * m - lost), "{n} {m}");
        assert!(!is_beyond_chance(n, m, n * m - lost - 1), "{n} {m}");
    }
    assert!(!is_beyond_chance(3, 3, 9));
    // Where counting ends, the normal distribution goes on: the same number of pairs, but for one in a hundred.
    let least = |n: usize, m: usize| (0..=n * m).find(|wins| is_beyond_chance(n, m, *wins)).unwrap();
    let (counted, beyond) = (least(40, 40) as f64 / 1600.0, least(40, 41) as f64 / 1640.0);
    assert!((counted - beyond).abs() < 0.01, "{counted} {beyond}");
}

proptest! {
    /// Whatever is measured: a machine is never worse than itself, what is found does not hang on the unit or on the order of samples,
    /// a regression always has medians further apart than the tolerance, and what is far worse beyond all spread is always seen.
    #[test]
    fn no_regression_without_cause(
        mut numbers in prop::collection::vec(1.0f64..1000.0, 0..40),
        mut others in prop::collection::vec(1.0f64..1000.0, 0..40),
        tolerance in 0u32..90,
        lower in any::<bool>(),
        scale in 0.01f64..100.0,
    ) {
        let better = if lower { Better::Lower } else { Better::Higher };
        let metric = metric(&format!("{tolerance}%"), better);
        let compare = |control: &[f64], patched: &[f64]| compare_metric(&metric, &samples(control), &samples(patched));
        prop_assert_ne!(compare(&numbers, &numbers).found, Found::Worse);
        let report = compare(&numbers, &others);
        if report.found == Found::Worse {
            let by = report.worse_by_percent.unwrap().number();
            prop_assert!(by > f64::from(tolerance) - 1e-9, "{}% for {}%", by, tolerance);
        }
        if numbers.len().min(others.len()) < LEAST_SAMPLES {
            prop_assert_eq!(report.found, Found::Undecided);
        } else {
            let apart: Vec<f64> =
                others.iter().map(|number| if lower { number * 1e6 } else { number / 1e6 }).collect();
            prop_assert_eq!(compare(&numbers, &apart).found, Found::Worse);
            prop_assert_eq!(compare(&apart, &numbers).found, Found::AsGood);
        }
        let scaled = |numbers: &[f64]| numbers.iter().map(|number| number * scale).collect::<Vec<_>>();
        let same = compare(&scaled(&numbers), &scaled(&others)).found;
        numbers.reverse();
        let third = others.len() / 3;
        others.rotate_left(third);
        prop_assert_eq!(compare(&numbers, &others).found, report.found);
        // A unit changes numbers in their last digit, and so a pair that is exactly at the tolerance: never to the opposite.
        prop_assert!(same == report.found || same == Found::Undecided || report.found == Found::Undecided);
    }
}
