"""Every metric's name, kind, help and labels. Values are kept and read elsewhere.

Labels are bounded: resources are the operator's, device IDs are those the inventory lists, and all
others take one of a few known values.
"""

from __future__ import annotations

from usbplugin.telemetry.instruments import Kind, Metric

_COUNTER, _GAUGE, _HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

# An event takes half a millisecond at best; udevd takes 50 ms, and is given 10 s at most.
_HOTPLUG_BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_CALL_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)
_PREPARE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0)

DEVICES = Metric(
    "usbplugin_devices",
    _GAUGE,
    "Devices, by the health reported to the kubelet (healthy or unhealthy) and the reason.",
    ("resource", "health", "reason"),
)
DEVICES_HELD = Metric(
    "usbplugin_devices_held",
    _GAUGE,
    "Devices held by containers, by the health reported to the kubelet.",
    ("resource", "health"),
)
DEVICES_LEFT_OUT = Metric(
    "usbplugin_devices_left_out",
    _GAUGE,
    "Devices the kubelet is not told of, because the list would be more than it takes (4 MiB).",
    ("resource",),
)
DEVICE_INFO = Metric(
    "usbplugin_device_info",
    _GAUGE,
    "Always 1, one series per device; its labels describe it, with commas between nodes.",
    (
        *("resource", "device", "node", "vendor", "product", "serial"),
        *("manufacturer", "product_name", "driver", "location"),
    ),
)
DEVICE_READY = Metric(
    "usbplugin_device_ready",
    _GAUGE,
    "Whether the device can be allocated now; absent while it is retired.",
    ("resource", "device"),
)
DEVICE_HOLDERS = Metric(
    "usbplugin_device_holders",
    _GAUGE,
    "Containers that hold the device.",
    ("resource", "device"),
)
PORTS = Metric(
    "usbplugin_ports",
    _GAUGE,
    "Serial ports present, including those that no resource selects.",
    ("source",),
)

PORT_EVENTS = Metric(
    "usbplugin_port_events_total",
    _COUNTER,
    "Times a source reported a single port as present (perhaps again) or gone.",
    ("source", "event"),
)
RESCANS = Metric(
    "usbplugin_rescans_total",
    _COUNTER,
    "Full listings by a source, by reason; overflow means that uevents were lost in a storm.",
    ("source", "reason"),
)
DEVICE_CHANGES = Metric(
    "usbplugin_device_changes_total",
    _COUNTER,
    "Times a device entered a state of health, or was forgotten.",
    ("resource", "to"),
)
DEVICE_REPLUGS = Metric(
    "usbplugin_device_replugs_total",
    _COUNTER,
    "Times a device came back after being unplugged.",
    ("resource",),
)
HOTPLUG_TO_STREAM = Metric(
    "usbplugin_hotplug_to_stream_seconds",
    _HISTOGRAM,
    "Time from a source noticing a change (by uevent or inotify) to writing it to the kubelet's"
    " stream, including udevd's share.",
    ("resource",),
    _HOTPLUG_BUCKETS,
)
SOURCE_INFO = Metric(
    "usbplugin_source_info",
    _GAUGE,
    "Always 1; learns_by says how the source learns about changes: uevents, inotify or polling.",
    ("source", "learns_by"),
)
SOURCE_UP = Metric(
    "usbplugin_source_up",
    _GAUGE,
    "Whether the source is running.",
    ("source",),
)
SOURCE_LISTED = Metric(
    "usbplugin_source_last_listing_timestamp_seconds",
    _GAUGE,
    "When the source last listed all its ports; 0 if never.",
    ("source",),
)

KUBELET_CALLS = Metric(
    "usbplugin_kubelet_calls_total",
    _COUNTER,
    "Calls from the kubelet, by outcome: ok, or the gRPC status.",
    ("resource", "method", "outcome"),
)
KUBELET_CALL_SECONDS = Metric(
    "usbplugin_kubelet_call_duration_seconds",
    _HISTOGRAM,
    "Time taken to answer calls from the kubelet.",
    ("resource", "method"),
    _CALL_BUCKETS,
)
REGISTRATIONS = Metric(
    "usbplugin_registrations_total",
    _COUNTER,
    "Registrations with the kubelet, by outcome.",
    ("resource", "outcome"),
)
GENERATIONS = Metric(
    "usbplugin_session_generations_total",
    _COUNTER,
    "Generations of a resource's plugin, each with its own socket and registration.",
    ("resource",),
)
KUBELET_RESTARTS = Metric(
    "usbplugin_kubelet_restarts_total",
    _COUNTER,
    "Times a resource's session found that the kubelet had been restarted.",
    ("resource",),
)
REGISTERED = Metric(
    "usbplugin_registered",
    _GAUGE,
    "Whether the resource is registered with the running kubelet.",
    ("resource",),
)
STANDING_BY = Metric(
    "usbplugin_standing_by",
    _GAUGE,
    "Whether the resource is left to a newer instance, which is registered.",
    ("resource",),
)
STREAMS = Metric(
    "usbplugin_streams_open",
    _GAUGE,
    "ListAndWatch streams the kubelet has open.",
    ("resource",),
)
HOLDER_QUERIES = Metric(
    "usbplugin_holder_queries_total",
    _COUNTER,
    "Times the kubelet was asked who holds devices, by outcome.",
    ("outcome",),
)

CONFIG_RELOADS = Metric(
    "usbplugin_config_reloads_total",
    _COUNTER,
    "Reloads of the configuration file after its content changed, by outcome.",
    ("outcome",),
)
CONFIG_GOOD = Metric(
    "usbplugin_config_last_reload_successful",
    _GAUGE,
    "Whether the configuration file's current content is in force.",
)
CONFIG_APPLIED = Metric(
    "usbplugin_config_applied_timestamp_seconds",
    _GAUGE,
    "When the configuration in force was applied.",
)

BUILD_INFO = Metric(
    "usbplugin_build_info",
    _GAUGE,
    "Always 1, labelled with the running versions.",
    ("version", "python"),
)
PART_FAILURES = Metric(
    "usbplugin_part_failures_total",
    _COUNTER,
    "Times a part of the plugin (a source or a session) failed and was restarted.",
    ("part",),
)
LOG_RECORDS = Metric(
    "usbplugin_log_records_total",
    _COUNTER,
    "Log lines written, by level.",
    ("level",),
)
LOG_SUPPRESSED = Metric(
    "usbplugin_log_suppressed_total",
    _COUNTER,
    "Log lines suppressed because too many were alike, by level.",
    ("level",),
)
HTTP_REQUESTS = Metric(
    "usbplugin_http_requests_total",
    _COUNTER,
    "HTTP requests answered, by path (other: any unknown path) and status code.",
    ("path", "code"),
)
HTTP_REFUSED = Metric(
    "usbplugin_http_refused_total",
    _COUNTER,
    "HTTP connections dropped because there were too many at once or they were too slow.",
)
HTTP_LISTENING = Metric(
    "usbplugin_http_listening",
    _GAUGE,
    "Whether metrics and health are served there; 0 if, for example, the address was taken.",
    ("listener",),
)
RESIDENT = Metric(
    "process_resident_memory_bytes",
    _GAUGE,
    "Resident memory.",
)
CPU = Metric(
    "process_cpu_seconds_total",
    _COUNTER,
    "CPU time used, user and system.",
)
DESCRIPTORS = Metric(
    "process_open_fds",
    _GAUGE,
    "Open file descriptors.",
)
STARTED = Metric(
    "process_start_time_seconds",
    _GAUGE,
    "When the process started.",
)

DRA_REGISTERED = Metric(
    "usbplugin_dra_registered",
    _GAUGE,
    "Whether the kubelet has registered the DRA driver.",
)
DRA_CLAIMS = Metric(
    "usbplugin_dra_claims",
    _GAUGE,
    "ResourceClaims that are prepared on this node.",
)
DRA_UNPUBLISHED = Metric(
    "usbplugin_dra_unpublished_seconds",
    _GAUGE,
    "For how long the API server has not had the devices as they are; 0 if it has.",
)
DRA_PREPARE_SECONDS = Metric(
    "usbplugin_dra_prepare_seconds",
    _HISTOGRAM,
    "Time to prepare a claim, by outcome; known means that it had been prepared before.",
    ("outcome",),
    _PREPARE_BUCKETS,
)
DRA_PUBLISH_SECONDS = Metric(
    "usbplugin_dra_publish_seconds",
    _HISTOGRAM,
    "Time from a change to the API server's answer to it.",
    (),
    _PREPARE_BUCKETS,
)
DRA_SLICES_RECREATED = Metric(
    "usbplugin_dra_slices_recreated_total",
    _COUNTER,
    "ResourceSlices that had been deleted, as the kubelet does when it starts, and were made anew.",
)
DRA_FIELDS_DROPPED = Metric(
    "usbplugin_dra_fields_dropped_total",
    _COUNTER,
    "Times the API server did not keep a field, for its feature gate is off.",
    ("field",),
)

SECTIONS = {
    "Devices": (
        *(DEVICES, DEVICES_HELD, DEVICES_LEFT_OUT, DEVICE_INFO, DEVICE_READY, DEVICE_HOLDERS),
        PORTS,
    ),
    "Hotplug": (
        *(DEVICE_CHANGES, DEVICE_REPLUGS, HOTPLUG_TO_STREAM, PORT_EVENTS, RESCANS),
        *(SOURCE_UP, SOURCE_INFO, SOURCE_LISTED),
    ),
    "Kubelet": (
        *(KUBELET_CALLS, KUBELET_CALL_SECONDS, REGISTERED, STANDING_BY, STREAMS),
        *(REGISTRATIONS, GENERATIONS, KUBELET_RESTARTS, HOLDER_QUERIES),
    ),
    "DRA": (
        *(DRA_REGISTERED, DRA_CLAIMS, DRA_PREPARE_SECONDS, DRA_UNPUBLISHED, DRA_PUBLISH_SECONDS),
        *(DRA_SLICES_RECREATED, DRA_FIELDS_DROPPED),
    ),
    "Configuration": (CONFIG_RELOADS, CONFIG_GOOD, CONFIG_APPLIED),
    "The plugin itself": (
        *(BUILD_INFO, PART_FAILURES, LOG_RECORDS, LOG_SUPPRESSED),
        *(HTTP_REQUESTS, HTTP_REFUSED, HTTP_LISTENING, RESIDENT, CPU, DESCRIPTORS, STARTED),
    ),
}
"""In the order of the documentation."""

METRICS = tuple(metric for section in SECTIONS.values() for metric in section)
