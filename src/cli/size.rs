//! Sizes of memory as people type them.

/// `512m`, `2g`, `2GiB`; a plain number is MiB. Whole numbers only.
pub fn parse_mib(text: &str) -> Result<u64, String> {
    const PROBLEM: &str = "must be a size (512m, 2g)";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| PROBLEM)?;
    let mib = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mi" | "mib" => 1,
        "g" | "gb" | "gi" | "gib" => 1 << 10,
        "t" | "tb" | "ti" | "tib" => 1 << 20,
        _ => return Err(PROBLEM.to_owned()),
    };
    number.checked_mul(mib).ok_or_else(|| PROBLEM.to_owned())
}

#[cfg(test)]
mod tests {
    use super::parse_mib;

    #[test]
    fn sizes() {
        for (text, mib) in [
            ("64", 64),
            ("64m", 64),
            ("64MiB", 64),
            ("1g", 1024),
            ("2G", 2048),
            ("1t", 1 << 20),
            ("0", 0),
        ] {
            assert_eq!(parse_mib(text), Ok(mib), "{text}");
        }
    }

    #[test]
    fn no_sizes() {
        for text in [
            "",
            "m",
            "-1",
            "+1",
            "1.5g",
            "64k",
            "64 m",
            "99999999999999999999",
            "99999999999999999t",
        ] {
            assert!(parse_mib(text).is_err(), "{text}");
        }
    }
}
