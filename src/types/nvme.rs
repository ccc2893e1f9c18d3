//! What a node needs to connect to a volume that another node exports (NVM Express Base Specification 2.0, section 4.5,
//! NVMe Qualified Names; TCP Transport Specification).

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Error, Kind, ObjectUuid, PoolId, Result, VolumeId};

/// The prefix of the subsystems that Holdfast exports; pool, uuid and nonce follow.
const SUBSYSTEM: &str = "nqn.2026-11.storage.holdfast:";
/// The prefix of NQNs that are a uuid.
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:";
/// The prefix of a secret that is used as it is, without a hash (NVMe TCP transport, 3.6.1.5; `nvme gen-dhchap-key`).
const KEY: &str = "DHHC-1:00:";
/// Bytes of a key's secret.
const SECRET: usize = 32;

/// The name of an export: its volume, and a random part that every export has of its own. It is not secret: it is in
/// sysfs and in the kernel's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubsystemNqn {
    /// The volume.
    pub volume: VolumeId,
    /// The random part. It changes with every attachment, so a client of an earlier one finds nothing.
    pub nonce: Uuid,
}

impl fmt::Display for SubsystemNqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SUBSYSTEM}{}:{}:{}", self.volume.pool, self.volume.uuid, self.nonce.as_simple())
    }
}

impl FromStr for SubsystemNqn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || Error::new(Kind::Corrupt, format!("{text:?} is not the name of a volume's export"));
        let mut parts = text.strip_prefix(SUBSYSTEM).ok_or_else(malformed)?.split(':');
        let (Some(pool), Some(uuid), Some(nonce), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        let pool: PoolId = pool.parse().map_err(|_| malformed())?;
        let uuid: ObjectUuid = uuid.parse().map_err(|_| malformed())?;
        let parsed =
            Self { volume: VolumeId::new(pool, uuid), nonce: Uuid::parse_str(nonce).map_err(|_| malformed())? };
        if parsed.to_string() == text { Ok(parsed) } else { Err(malformed()) }
    }
}

/// The name by which a node connects to one export: a random uuid, which is also its host id. An export accepts this
/// name alone, so it is never logged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostNqn(Uuid);

impl HostNqn {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// From a message or a record.
    #[must_use]
    pub fn of(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The host id. The kernel rejects one host id with two names (drivers/nvme/host/fabrics.c, `nvmf_host_add`).
    #[must_use]
    pub fn host_id(&self) -> Uuid {
        self.0
    }

    /// The name, for the kernel only.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{HOST}{}", self.0.as_hyphenated())
    }
}

impl fmt::Debug for HostNqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostNqn(..)")
    }
}

/// A secret for DH-HMAC-CHAP, with which both kernels authenticate a connection. Never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DhchapKey(String);

impl DhchapKey {
    /// A new random secret.
    ///
    /// # Errors
    /// `Internal` when the system has no random numbers.
    pub fn random() -> Result<Self> {
        let mut secret = [0; SECRET];
        let filled = SystemRandom::new().fill(&mut secret);
        filled.map_err(|error| Error::new(Kind::Internal, "cannot read random numbers").because(error.to_string()))?;
        Ok(Self::of(secret))
    }

    fn of(secret: [u8; SECRET]) -> Self {
        let mut bytes = secret.to_vec();
        bytes.extend(crc32(&secret).to_le_bytes());
        Self(format!("{KEY}{}:", STANDARD.encode(bytes)))
    }

    /// The secret in the form of the kernel, for the kernel only.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for DhchapKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The text is secret: it is not in the message.
        let malformed = || Error::new(Kind::Corrupt, "a key for DH-HMAC-CHAP is malformed");
        let encoded = text.strip_prefix(KEY).and_then(|rest| rest.strip_suffix(':')).ok_or_else(malformed)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| malformed())?;
        let (secret, _) = bytes.split_at_checked(SECRET).ok_or_else(malformed)?;
        let key = Self::of(secret.try_into().map_err(|_| malformed())?);
        if key.0 == text { Ok(key) } else { Err(malformed()) }
    }
}

impl From<DhchapKey> for String {
    fn from(key: DhchapKey) -> Self {
        key.0
    }
}

impl TryFrom<String> for DhchapKey {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Debug for DhchapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DhchapKey(..)")
    }
}

/// Where a volume's export is, and what is needed to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeTcpAddress {
    /// Address and port of the home node.
    pub address: SocketAddr,
    /// The export.
    pub subsystem: SubsystemNqn,
    /// The name that the export accepts.
    pub host: HostNqn,
    /// The uuid that the namespace reports.
    pub namespace: Uuid,
    /// The key, where both kernels can authenticate.
    pub key: Option<DhchapKey>,
}

/// CRC-32 (IEEE 802.3), as the kernel checks the end of a key (drivers/nvme/common/auth.c).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_named_by_its_volume_and_nonce_and_nothing_else_is_such_a_name() {
        let volume = VolumeId::new(PoolId::random(), ObjectUuid::of_volume("a"));
        let name = SubsystemNqn { volume, nonce: Uuid::new_v4() };
        let text = name.to_string();
        assert_eq!(text.parse::<SubsystemNqn>().unwrap(), name);
        assert!(text.len() < 223, "NVMe's limit of a name");
        let upper = format!("{SUBSYSTEM}{}", text[SUBSYSTEM.len()..].to_uppercase());
        for other in ["", SUBSYSTEM, &text[1..], &text[..text.len() - 1], &format!("{text}:x"), &upper] {
            assert!(other.parse::<SubsystemNqn>().is_err(), "{other}");
        }
    }

    #[test]
    fn names_and_keys_are_not_in_debug_output() {
        let (host, key) = (HostNqn::random(), DhchapKey::random().unwrap());
        let text = format!("{host:?} {key:?}");
        assert!(!text.contains(&host.host_id().to_string()) && !text.contains(&key.reveal()[10..20]), "{text}");
        assert_eq!(host.reveal(), format!("nqn.2014-08.org.nvmexpress:uuid:{}", host.host_id()));
    }

    #[test]
    fn a_key_has_the_form_of_the_kernel() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let key = DhchapKey::random().unwrap();
        assert_ne!(key, DhchapKey::random().unwrap());
        assert_eq!(key.reveal().parse::<DhchapKey>().unwrap(), key);
        let damaged = key.reveal().replace("DHHC-1:00:", "DHHC-1:01:");
        assert!(damaged.parse::<DhchapKey>().is_err());
        let mut changed = key.reveal().to_owned();
        changed.replace_range(12..13, if &changed[12..13] == "A" { "B" } else { "A" });
        let error = changed.parse::<DhchapKey>().unwrap_err().to_string();
        assert!(!error.contains(&changed[10..20]), "{error}");
    }
}
