//! Finds the cloud by what its firmware says, without a packet.
//!
//! Six clouds have their metadata service at 169.254.169.254. To try one dialect after another would send requests that
//! one cloud counts, one refuses, and one answers with what looks like another's.

use std::{fmt, fs, path::Path};

use crate::{Provider, provider::Unable};

/// What the firmware says of a machine: files of `/sys/class/dmi/id`, and the UUID that Xen gives (AWS before Nitro).
/// A file that is missing or cannot be read is an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dmi {
    /// The manufacturer of the system.
    pub sys_vendor: String,
    /// The system's name.
    pub product_name: String,
    /// The system's UUID; readable for root only.
    pub product_uuid: String,
    /// The chassis' asset tag.
    pub chassis_asset_tag: String,
    /// The firmware's version.
    pub bios_version: String,
    /// `/sys/hypervisor/uuid`.
    pub hypervisor_uuid: String,
}

/// What [`detect`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// A cloud whose metadata service tells of addresses.
    Cloud(Provider),
    /// A cloud whose metadata service does not.
    Unable(Unable),
    /// Nothing that is known: a machine in no cloud, most likely.
    Unknown,
}

impl Dmi {
    /// Reads it from a `/sys`.
    #[must_use]
    pub fn read(sys: &Path) -> Self {
        let file = |path: &str| {
            let bytes = fs::read(sys.join(path)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).trim().to_owned()
        };
        Self {
            sys_vendor: file("class/dmi/id/sys_vendor"),
            product_name: file("class/dmi/id/product_name"),
            product_uuid: file("class/dmi/id/product_uuid"),
            chassis_asset_tag: file("class/dmi/id/chassis_asset_tag"),
            bios_version: file("class/dmi/id/bios_version"),
            hypervisor_uuid: file("hypervisor/uuid"),
        }
    }

    /// Whether this is AWS. Nitro says it in plain text. Xen's instances have a UUID that begins with `ec2`; of all UUIDs
    /// in the world one in 4,096 does so, too, so it counts only if the manufacturer does not say something else.
    fn is_aws(&self) -> bool {
        let is_xen = ["", "xen"].contains(&&*self.sys_vendor.to_lowercase());
        self.sys_vendor == "Amazon EC2"
            || self.bios_version.ends_with(".amazon")
            || begins_with_ec2(&self.hypervisor_uuid)
            || is_xen && begins_with_ec2(&self.product_uuid)
    }

    fn is_openstack(&self) -> bool {
        let names = ["OpenStack Nova", "OpenStack Compute"];
        self.sys_vendor == "OpenStack Foundation"
            || names.contains(&&*self.product_name)
            || names.contains(&&*self.chassis_asset_tag)
    }
}

/// Whether a UUID begins with `ec2`, in the byte order of its text or, as SMBIOS 2.4 has it, with the first four bytes
/// reversed (Amazon EC2 User Guide, "Detect whether a host is an EC2 instance").
fn begins_with_ec2(uuid: &str) -> bool {
    let uuid = uuid.to_ascii_lowercase();
    let reversed = || {
        let first = uuid.split('-').next()?;
        (first.len() == 8).then_some(())?;
        Some([first.get(6..8)?, first.get(4..6)?].concat())
    };
    uuid.starts_with("ec2") || reversed().is_some_and(|front| front.starts_with("ec2"))
}

/// Azure's chassis asset tag.
const AZURE: &str = "7783-7084-3265-9085-8269-3286-77";

/// Finds the cloud. Pure.
///
/// The facts are those of cloud-init's `ds-identify`; Tencent Cloud's are in boot logs of its machines.
///
/// # Examples
///
/// ```
/// use ebbtide_cloud::{Detected, Dmi, Provider, detect};
///
/// let dmi = Dmi { sys_vendor: "Amazon EC2".into(), ..Dmi::default() };
/// assert_eq!(detect(&dmi), Detected::Cloud(Provider::Aws));
/// assert_eq!(detect(&Dmi::default()), Detected::Unknown);
/// ```
#[must_use]
pub fn detect(dmi: &Dmi) -> Detected {
    let tag = dmi.chassis_asset_tag.as_str();
    // OpenStack is last: clouds that are built on it leave its name in a field or two.
    let found = [
        (dmi.is_aws(), Detected::Cloud(Provider::Aws)),
        (
            dmi.product_name == "Alibaba Cloud ECS",
            Detected::Cloud(Provider::Alibaba),
        ),
        (tag == AZURE, Detected::Cloud(Provider::Azure)),
        (
            dmi.product_name == "Google Compute Engine",
            Detected::Cloud(Provider::Gcp),
        ),
        (
            dmi.sys_vendor == "Tencent Cloud",
            Detected::Cloud(Provider::Tencent),
        ),
        (tag == "OracleCloud.com", Detected::Unable(Unable::Oracle)),
        (
            ["HUAWEICLOUD", "OpenTelekomCloud"].contains(&tag),
            Detected::Unable(Unable::Huawei),
        ),
        (dmi.is_openstack(), Detected::Unable(Unable::OpenStack)),
    ];
    found
        .into_iter()
        .find_map(|(is, which)| is.then_some(which))
        .unwrap_or(Detected::Unknown)
}

impl fmt::Display for Dmi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sys_vendor,
            product_name,
            chassis_asset_tag,
            ..
        } = self;
        write!(
            f,
            "sys_vendor {sys_vendor:?}, product_name {product_name:?}, chassis_asset_tag {chassis_asset_tag:?}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_is_known_by_its_firmware_and_by_nothing_less() {
        let of = |fields: &[(&str, &str)]| {
            let mut dmi = Dmi::default();
            for (name, value) in fields {
                let field = match *name {
                    "vendor" => &mut dmi.sys_vendor,
                    "product" => &mut dmi.product_name,
                    "uuid" => &mut dmi.product_uuid,
                    "tag" => &mut dmi.chassis_asset_tag,
                    "bios" => &mut dmi.bios_version,
                    _ => &mut dmi.hypervisor_uuid,
                };
                *field = (*value).to_owned();
            }
            dmi
        };
        use Detected::{Cloud, Unable as Cannot, Unknown};
        #[rustfmt::skip]
        let cases: &[(&[(&str, &str)], Detected)] = &[
            // Nitro: virtual and bare metal, x86-64 and Graviton.
            (&[("vendor", "Amazon EC2"), ("product", "m5.large"), ("tag", "Amazon EC2")], Cloud(Provider::Aws)),
            // Xen, in both byte orders, and by each of its signs alone.
            (&[("vendor", "Xen"), ("product", "HVM domU"), ("uuid", "EC2E1916-9099-7CAF-FD21-012345ABCDEF")], Cloud(Provider::Aws)),
            (&[("vendor", "Xen"), ("uuid", "45E12AEC-DCD1-B213-94ED-012345ABCDEF")], Cloud(Provider::Aws)),
            (&[("vendor", "Xen"), ("bios", "4.11.amazon")], Cloud(Provider::Aws)),
            (&[("hypervisor", "ec2e1916-9099-7caf-fd21-012345abcdef")], Cloud(Provider::Aws)),
            // A UUID that begins so by chance.
            (&[("vendor", "QEMU"), ("uuid", "ec2e1916-9099-4caf-bd21-012345abcdef")], Unknown),
            (&[("vendor", "Xen"), ("uuid", "45E12AEC")], Cloud(Provider::Aws)),
            (&[("vendor", "Xen"), ("uuid", "12AEC")], Unknown),
            (&[("vendor", "Xen"), ("uuid", "ö2ae€-")], Unknown),
            (&[("vendor", "Alibaba Cloud"), ("product", "Alibaba Cloud ECS")], Cloud(Provider::Alibaba)),
            (&[("vendor", "Microsoft Corporation"), ("product", "Virtual Machine"), ("tag", AZURE)], Cloud(Provider::Azure)),
            // Hyper-V that is not Azure.
            (&[("vendor", "Microsoft Corporation"), ("product", "Virtual Machine"), ("tag", "3423-1")], Unknown),
            (&[("vendor", "Google"), ("product", "Google Compute Engine")], Cloud(Provider::Gcp)),
            (&[("vendor", "Google"), ("product", "Pixelbook")], Unknown),
            (&[("vendor", "Tencent Cloud"), ("product", "CVM"), ("bios", "seabios-1.9.1-qemu-project.org")], Cloud(Provider::Tencent)),
            (&[("vendor", "QEMU"), ("tag", "OracleCloud.com")], Cannot(Unable::Oracle)),
            (&[("vendor", "OpenStack Foundation"), ("product", "OpenStack Nova"), ("tag", "HUAWEICLOUD")], Cannot(Unable::Huawei)),
            (&[("product", "OpenStack Nova"), ("tag", "OpenTelekomCloud")], Cannot(Unable::Huawei)),
            (&[("vendor", "RDO"), ("product", "OpenStack Compute")], Cannot(Unable::OpenStack)),
            (&[("tag", "OpenStack Nova")], Cannot(Unable::OpenStack)),
            (&[("vendor", "OpenStack Foundation")], Cannot(Unable::OpenStack)),
            (&[("vendor", "Dell Inc."), ("product", "PowerEdge R640")], Unknown),
            (&[], Unknown),
        ];
        for (fields, expected) in cases {
            assert_eq!(detect(&of(fields)), *expected, "{fields:?}");
        }
    }

    #[test]
    fn what_is_missing_below_sys_is_empty() {
        assert_eq!(Dmi::read(Path::new("/nonexistent")), Dmi::default());
    }
}
