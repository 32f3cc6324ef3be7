{{- define "usbplugin.name" -}}
{{ .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "usbplugin.selector" -}}
app.kubernetes.io/name: usbplugin
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "usbplugin.labels" -}}
{{ include "usbplugin.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- /* Registered and streaming, or standing by for a newer instance. */ -}}
{{- define "usbplugin.ready" -}}
{{- if .Values.http.enabled -}}
httpGet:
  path: /readyz
  port: http
{{- else -}}
exec:
  command: [grep, -q, ready, /proc/1/comm]
{{- end -}}
{{- end -}}

{{- /* Of what has no namespace: the release's comes first. */ -}}
{{- define "usbplugin.clusterName" -}}
{{ printf "%s-%s-dra" .Release.Namespace (include "usbplugin.name" .) }}
{{- end }}

{{- define "usbplugin.pluginsRegistryDir" -}}
{{- if .Values.kubelet.pluginsRegistryDir -}}
{{ .Values.kubelet.pluginsRegistryDir }}
{{- else if .Values.dra.enabled -}}
/var/lib/kubelet/plugins_registry
{{- end -}}
{{- end }}
