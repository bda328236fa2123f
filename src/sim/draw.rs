//! Chance without a generator: what happens to request number n follows from the seed and n, so
//! that a run can be repeated.

use super::SimOptions;
use super::fault::Fault;

/// The fault that chance has for request `number`.
pub(super) fn fate(options: &SimOptions, number: u64) -> Option<Fault> {
    let draw = unit(mix(options.seed ^ mix(number)));
    let mut up_to = 0.0;
    // Each of those that the ones before it have left.
    let faults = [
        (options.rate_limit_rate, Fault::RateLimitRetryAfter),
        (options.failure_rate, Fault::ServerError),
        (options.prose_rate, Fault::ProseForJson),
    ];
    faults.into_iter().find_map(|(rate, fault)| {
        up_to += rate * (1.0 - up_to);
        (draw < up_to).then_some(fault)
    })
}

/// Spreads `value` evenly over all 64 bits (the finalizer of splitmix64).
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The same for a text.
pub(super) fn mix_text(seed: u64, text: &str) -> u64 {
    text.bytes().fold(mix(seed), |hash, byte| mix(hash ^ u64::from(byte)))
}

/// From 0 to just under 1.
pub(super) fn unit(bits: u64) -> f64 {
    const BITS: u32 = f64::MANTISSA_DIGITS;
    (bits >> (u64::BITS - BITS)) as f64 / (1u64 << BITS) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(failure_rate: f64, rate_limit_rate: f64, seed: u64) -> Vec<Option<Fault>> {
        let options = SimOptions { failure_rate, rate_limit_rate, seed, ..SimOptions::default() };
        fates_of(&options)
    }

    fn fates_of(options: &SimOptions) -> Vec<Option<Fault>> {
        (0..10_000).map(|number| fate(options, number)).collect()
    }

    #[test]
    fn rates_hold() {
        let rates = SimOptions {
            failure_rate: 0.2,
            rate_limit_rate: 0.1,
            prose_rate: 0.5,
            seed: 7,
            ..SimOptions::default()
        };
        let fates = fates_of(&rates);
        let share = |wanted| {
            fates.iter().filter(|fate| **fate == wanted).count() as f64 / fates.len() as f64
        };
        assert!((share(Some(Fault::RateLimitRetryAfter)) - 0.1).abs() < 0.02);
        // Of those that are not refused.
        assert!((share(Some(Fault::ServerError)) - 0.2 * 0.9).abs() < 0.02);
        // Of the rest.
        assert!((share(Some(Fault::ProseForJson)) - 0.5 * 0.8 * 0.9).abs() < 0.02);
    }

    #[test]
    fn nothing_and_everything() {
        assert!(fates(0.0, 0.0, 1).iter().all(|fate| fate.is_none()));
        assert!(fates(1.0, 0.0, 1).iter().all(|fate| *fate == Some(Fault::ServerError)));
        assert!(fates(1.0, 1.0, 1).iter().all(|fate| *fate == Some(Fault::RateLimitRetryAfter)));
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(fates(0.5, 0.0, 1), fates(0.5, 0.0, 1));
        assert_ne!(fates(0.5, 0.0, 1), fates(0.5, 0.0, 2));
    }
}
