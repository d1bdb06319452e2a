{{- define "ebbtide.uninstall.labels" -}}
app.kubernetes.io/name: ebbtide-uninstall
app.kubernetes.io/version: {{ .Chart.AppVersion }}
{{- end -}}

{{/* An object that exists during the removal alone: the events, and the order. */}}
{{- define "ebbtide.uninstall.hook" -}}
helm.sh/hook: {{ index . 0 }}
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* The container that uninstalls a node; further arguments follow. */}}
{{- define "ebbtide.uninstall.node" -}}
image: {{ include "ebbtide.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  readOnlyRootFilesystem: true
  runAsUser: 0
  {{- with .Values.agent.seLinuxOptions }}
  seLinuxOptions: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.agent.privileged }}
  privileged: true
  {{- else }}
  seccompProfile:
    type: RuntimeDefault
  # As the agent, without NET_BROADCAST.
  capabilities:
    drop: [ALL]
    add:
      - NET_ADMIN
      - SYS_ADMIN
      {{- if .Values.agent.hostRoot }}
      - SYS_CHROOT
      {{- end }}
      {{- if .Values.agent.hostPID }}
      - SYS_PTRACE
      {{- end }}
  {{- end }}
volumeMounts:
  - name: cni-bin
    mountPath: {{ .Values.cni.binDir }}
  - name: cni-conf
    mountPath: /host/etc/cni/net.d
  - name: netns
    mountPath: /run/netns
    mountPropagation: HostToContainer
  - name: bpf
    mountPath: /sys/fs/bpf
    mountPropagation: HostToContainer
  - name: sysctl
    mountPath: /host/proc/sys/net
  - name: run
    mountPath: /host/run
    mountPropagation: HostToContainer
  - name: lib
    mountPath: /host/lib
  {{- if .Values.agent.hostRoot }}
  - name: root
    mountPath: /host/root
    mountPropagation: HostToContainer
  {{- end }}
args:
  - uninstall
  - --cni-bin-dir={{ .Values.cni.binDir }}
  - --cni-conf-dir=/host/etc/cni/net.d
  - --cni-conf-name={{ .Values.cni.confName }}
  - --sysctl-dir=/host/proc/sys
  - --state-dir=/host/lib/ebbtide
  - --run-dir=/host/run/ebbtide
  - --forwarding={{ .Values.uninstall.forwarding }}
  {{- if .Values.agent.hostRoot }}
  - --host-root=/host/root
  {{- end }}
  {{- if .Values.uninstall.purge }}
  - --purge
  {{- end }}
{{- end -}}

{{/* The pod that asks the API server; further arguments follow. */}}
{{- define "ebbtide.uninstall.pod" -}}
serviceAccountName: ebbtide-uninstall
# It runs when pods have no network any more.
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
restartPolicy: Never
tolerations:
  - operator: Exists
nodeSelector: {{- toYaml .Values.controller.nodeSelector | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: uninstall
    image: {{ include "ebbtide.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    {{- with include "ebbtide.api-server.env" . }}
    env: {{- . | trim | nindent 6 }}
    {{- end }}
    securityContext:
      {{- include "ebbtide.unprivileged" . | nindent 6 }}
    args:
      - uninstall-cluster
{{- end -}}
