//! A place that has documents and files, by its URI.

use std::{fmt, net::IpAddr};

use patchlab_protocol::Digest;
use reqwest::Url;

use super::FetchError;

/// Where documents and files are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    base: Url,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.base.fmt(f)
    }
}

impl Place {
    /// A place from its URI.
    ///
    /// # Errors
    /// When it is not `http://ADDRESS[:PORT][/PATH]` with an IP address.
    pub fn new(uri: &str) -> Result<Self, FetchError> {
        let bad = |reason| FetchError::Uri { uri: uri.chars().take(255).collect(), reason };
        let mut base: Url = uri.parse().map_err(|_| bad("expected http://ADDRESS[:PORT][/PATH]"))?;
        if base.scheme() != "http" || base.query().is_some() || base.fragment().is_some() || base.username() != "" {
            return Err(bad("expected http://ADDRESS[:PORT][/PATH]"));
        }
        let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
        if host.parse::<IpAddr>().is_err() {
            return Err(bad("expected an IP address, host names are not resolved"));
        }
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        Ok(Self { base })
    }

    /// Where it has a document.
    pub(super) fn document(&self, digest: &Digest) -> String {
        format!("{}documents/{digest}", self.base)
    }

    /// Where it has a package file.
    pub(super) fn artifact(&self, digest: &Digest) -> String {
        format!("{}artifacts/{digest}", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_to_an_address_is_a_place() {
        for good in ["http://127.0.0.1:8000", "http://10.0.2.2/site/a", "http://[::1]:80/x/"] {
            assert!(Place::new(good).unwrap().base.path().ends_with('/'), "{good}");
        }
        for bad in
            ["https://127.0.0.1/", "http://example.net/", "file:///etc", "http://a@127.0.0.1/", "http://1.2.3.4/?x"]
        {
            assert!(Place::new(bad).is_err(), "{bad}");
        }
    }
}
