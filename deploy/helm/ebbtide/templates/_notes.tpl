{{/* The values that this chart reads. An empty entry here may contain anything. */}}
{{- define "ebbtide.known" -}}
global: {imageRegistryOverride: }
image: {registry: , repository: , tag: , digest: , pullPolicy: }
imagePullSecrets:
ipam: {enableStatefulSet: }
multus: {multusCNI: {defaultCniCRName: }}
plugins: {installCNI: }
admissionPolicy: {enabled: }
accountPolicy: {enabled: }
uninstall: {enabled: , podTimeoutSeconds: , timeoutSeconds: , purge: , forwarding: }
test: {enabled: , arguments: , timeoutSeconds: , resources: }
cloudController:
  enabled:
  provider:
  region:
  by:
  warm:
  warmIPv6:
  slack:
  idleSeconds:
  maxPerNic:
  dryRun:
  endpoint:
  stsEndpoint:
  replicas:
  serviceAccount: {annotations: }
  nodeSelector:
  resources:
controller:
  replicas:
  nodeSelector:
  resources:
  priorityClassName:
  tolerations:
  affinity:
  podAnnotations:
  podLabels:
  extraEnv:
cni: {binDir: , confDir: , confName: , conflist: }
metrics:
  enabled:
  listen:
  port:
  controllerPort:
  podMonitor: {enabled: , interval: , labels: }
  serviceMonitor: {enabled: , interval: , labels: }
  prometheusRule: {enabled: , labels: }
  dashboard: {enabled: , labels: }
agent:
  config:
  logFormat:
  logLevel:
  resources:
  apiServer: {host: , port: }
  nodeSelector:
  affinity:
  tolerations:
  priorityClassName:
  updateStrategy:
  podAnnotations:
  podLabels:
  extraEnv:
  privileged:
  hostPID:
  hostRoot:
  seLinuxOptions:
{{- end -}}

{{/* The values that it does not read, one per line, with the whole path. */}}
{{- define "ebbtide.unknown" -}}
{{- $known := .known -}}
{{- $path := .path -}}
{{- range $key, $value := .values }}
{{- $at := printf "%s%s" $path $key }}
{{- $there := hasKey $known $key }}
{{- $below := ternary (get $known $key) dict $there }}
{{- if and (kindIs "map" $value) (or (not $there) (kindIs "map" $below)) }}
{{- include "ebbtide.unknown" (dict "values" $value "known" $below "path" (printf "%s." $at)) }}
{{- else if not $there }}
{{ $at }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Why a value has no effect, and what to use instead: mostly for values of Spiderpool's chart. */}}
{{- define "ebbtide.why" -}}
{{- if hasPrefix "clusterDefaultPool." . -}}
no pool is made; create a SpiderIPPool with default: true
{{- else if hasPrefix "coordinator." . -}}
no SpiderCoordinator is made from it; create one (hijackCIDR, podDefaultRouteNIC and podCIDRType: cluster have an effect there)
{{- else if hasPrefix "ipam.enableIPv" . -}}
a pod gets an address of each family for which a pool serves it
{{- else if or (hasPrefix "ipam.enableSpiderSubnet" .) (hasPrefix "ipam.subnet" .) (hasPrefix "ipam.enableAutoPool" .) -}}
there are no subnets and no automatic pools; create SpiderIPPools
{{- else if hasPrefix "ipam.gc." . -}}
an address is freed by evidence that its pod is gone, not after some time
{{- else if hasPrefix "ipam.enableKubevirt" . -}}
fixed addresses of virtual machines are not supported
{{- else if hasPrefix "ipam." . -}}
the agent has no such setting
{{- else if hasPrefix "multus." . -}}
no Multus is installed; for one in front see cni.confName
{{- else if hasPrefix "plugins." . -}}
no other plugins are installed
{{- else if hasPrefix "spiderpoolAgent." . -}}
the agent's values are those below agent
{{- else if hasPrefix "spiderpoolController." . -}}
the controller's values are those below controller
{{- else if hasPrefix "global." . -}}
only global.imageRegistryOverride is read
{{- else -}}
this chart has no such value
{{- end -}}
{{- end -}}
