//! systemd-boot, by bootctl(1): what it says is read here, and what it is told. Pure.

use serde::Deserialize;

use super::{Entry, Menu};

/// Where EFI variables show, and systemd-boot's vendor (Boot Loader Interface).
pub(super) const VARIABLES: &str = "sys/firmware/efi/efivars";
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// One of `bootctl list --json=short`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: String,
    version: Option<String>,
    options: Option<String>,
    linux: Option<String>,
}

/// The name of a variable's file.
pub(super) fn variable(name: &str) -> String {
    format!("{name}-{VENDOR}")
}

/// What a variable's file says: four bytes of attributes, then UTF-16, little-endian, with a zero at its end.
pub(super) fn text(bytes: &[u8]) -> Option<String> {
    let (pairs, []) = bytes.get(4..)?.as_chunks::<2>() else { return None };
    let units: Vec<u16> = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    Some(String::from_utf16(&units).ok()?.trim_end_matches('\0').to_owned())
}

/// The entries that boot a kernel.
///
/// # Errors
/// It is no list of entries.
pub(super) fn menu(json: &str) -> Result<Menu, serde_json::Error> {
    let listed: Vec<Listed> = serde_json::from_str(json)?;
    let entry = |listed: Listed| {
        let release = listed.version.filter(|_| listed.linux.is_some())?;
        Some(Entry { id: listed.id, release, options: listed.options.unwrap_or_default() })
    };
    Ok(Menu { entries: listed.into_iter().filter_map(entry).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_from_bootctls_list() {
        // Debian 12's systemd 252, shortened.
        let json = r#"[{"type":"type1","id":"0123-6.1.0-50-amd64.conf","path":"/efi/loader/entries/0123-6.1.0-50-amd64.conf",
            "root":"/efi","title":"Debian","version":"6.1.0-50-amd64","options":"root=/dev/vda2 panic=30",
            "linux":"/0123/6.1.0-50-amd64/linux","isDefault":true},
            {"type":"auto","id":"auto-reboot-to-firmware-setup","title":"Reboot Into Firmware Interface"}]"#;
        let menu = menu(json).unwrap();
        assert_eq!(menu.entries.len(), 1);
        assert!(menu.of("6.1.0-50-amd64").unwrap().reboots_on_panic());
        assert!(super::menu("{}").is_err());
    }

    #[test]
    fn a_variable_is_utf_16_after_its_attributes() {
        let bytes = |text: &str| -> Vec<u8> {
            let units = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
            [6, 0, 0, 0].into_iter().chain(units).collect()
        };
        assert_eq!(text(&bytes("systemd-boot 252")).as_deref(), Some("systemd-boot 252"));
        assert_eq!(text(&[6, 0, 0, 0, 1]), None);
        assert_eq!(text(&[]), None);
    }
}
