//! Times on the wire: `DateAndTime` of RFC 2579, written in UTC. Pure.

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, Time},
    tz::TimeZone,
};

/// A time as eleven octets, to a tenth of a second.
pub fn octets(at: Timestamp) -> Vec<u8> {
    let utc = at.to_zoned(TimeZone::UTC);
    let small = |number: i8| u8::try_from(number).unwrap_or(0);
    let year = u16::try_from(utc.year()).unwrap_or(0).to_be_bytes();
    let tenths = u8::try_from(utc.millisecond() / 100).unwrap_or(0);
    let day = [utc.month(), utc.day(), utc.hour(), utc.minute(), utc.second()].map(small);
    [&year[..], &day, &[tenths, b'+', 0, 0]].concat()
}

/// As [`octets`]; nothing where there is no time.
pub fn optional(at: Option<Timestamp>) -> Vec<u8> {
    at.map(octets).unwrap_or_default()
}

/// The time that eight octets (in UTC) or eleven say; `None` when they say none. A leap second is the second before.
pub fn read(octets: &[u8]) -> Option<Timestamp> {
    let (&[y1, y0, month, day, hour, minute, second, tenths], zone) = octets.split_first_chunk::<8>()?;
    let ahead = match *zone {
        [] => SignedDuration::ZERO,
        // RFC 2579 allows 13 hours, for New Zealand's summer; the sign says on which side of UTC the local time is.
        [sign @ (b'+' | b'-'), hours @ 0..=13, minutes @ 0..=59] => {
            let ahead = SignedDuration::from_mins(i64::from(hours) * 60 + i64::from(minutes));
            if sign == b'+' { ahead } else { -ahead }
        }
        _ => return None,
    };
    if tenths > 9 || second > 60 {
        return None;
    }
    let small = |number: u8| i8::try_from(number).ok();
    let year = i16::try_from(u16::from_be_bytes([y1, y0])).ok()?;
    let date = Date::new(year, small(month)?, small(day)?).ok()?;
    let time = Time::new(small(hour)?, small(minute)?, small(second.min(59))?, i32::from(tenths) * 100_000_000).ok()?;
    let local = date.to_datetime(time).to_zoned(TimeZone::UTC).ok()?.timestamp();
    local.checked_sub(ahead).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_time_is_read_as_it_was_written() {
        for text in ["2026-11-24T17:05:09.3Z", "1999-12-31T23:59:59Z", "2400-02-29T00:00:00Z"] {
            assert_eq!(read(&octets(time(text))), Some(time(text)), "{text}");
        }
        assert_eq!(optional(None), Vec::<u8>::new());
    }

    #[test]
    fn a_zone_is_taken_off_and_none_is_utc() {
        // The example of RFC 2579: Tuesday May 26, 1992 at 1:30:15 PM EDT.
        let eastern = [7, 200, 5, 26, 13, 30, 15, 0, b'-', 4, 0];
        assert_eq!(read(&eastern), Some(time("1992-05-26T17:30:15Z")));
        assert_eq!(read(&eastern[..8]), Some(time("1992-05-26T13:30:15Z")));
    }

    #[test]
    fn what_is_no_time_says_none() {
        let good = [7, 234, 11, 24, 17, 5, 9, 3, b'+', 0, 0];
        assert!(read(&good).is_some());
        for (place, value) in [(2, 13), (3, 31), (4, 24), (5, 60), (6, 61), (7, 10), (8, b' '), (9, 14), (10, 60)] {
            let mut bad = good;
            bad[place] = value;
            assert_eq!(read(&bad), None, "octet {place} is {value}");
        }
        for length in [0, 1, 7, 9, 10] {
            assert_eq!(read(&good[..length]), None, "{length} octets");
        }
    }
}
