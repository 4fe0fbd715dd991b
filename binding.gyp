{
  # Sanitizers: node-gyp rebuild --sanitize=address,undefined (or thread), then
  # run node with LD_PRELOAD=$(g++ -print-file-name=libasan.so).
  'variables': { 'sanitize%': '' },
  'targets': [
    {
      'target_name': 'holdfast',
      'sources': [
        '<!@(find native -name "*.cc" -not -path "native/fuzz/*" -not -path "native/test/*" -not -path "native/build/*" -not -path "native/nbdkit/*" | sort)'
      ],
      'include_dirs': ['native'],
      # Static: the addon then asks nothing of the host it runs on.
      'libraries': ['-l:liburing.a'],
      'defines': [
        'NAPI_VERSION=9',
        'NODE_ADDON_API_DISABLE_CPP_EXCEPTIONS',
        'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
        '_GNU_SOURCE'
      ],
      'cflags!': ['-O3'],
      'cflags': ['-O2', '-Wall', '-Wextra', '-Werror', '-fvisibility=hidden'],
      'cflags_cc!': ['-std=gnu++17', '-std=gnu++14'],
      'cflags_cc': [
        '-std=gnu++20',
        '-fvisibility-inlines-hidden',
        # Headers only: the gate `plug` opens libnl-route-3 at run time.
        '-isystem /usr/include/libnl3',
        '-isystem <!(node -p "require(\'path\').resolve(require(\'node-addon-api\').include_dir)")'
      ],
      'conditions': [
        ['sanitize!=""', {
          # g++ 12 takes members of an optional for uninitialised when it instruments them.
          'cflags': ['-fsanitize=<(sanitize)', '-fno-omit-frame-pointer', '-g', '-Wno-maybe-uninitialized'],
          'ldflags': ['-fsanitize=<(sanitize)']
        }]
      ]
    },
    {
      # The disk server, which nbdkit loads. Not *.node: that is what a loader of
      # addons looks for. prebuildify packs *.so beside the addon.
      'target_name': 'holdfast_disk',
      'type': 'shared_library',
      'product_prefix': '',
      'sources': [
        '<!@(find native/nbdkit -name "*.cc" | sort)',
        'native/base/unix_socket.cc',
        'native/disk/disk_file.cc',
        'native/disk/disk_map.cc',
        'native/disk/image_file.cc',
        'native/disk/journal.cc',
        'native/disk/record.cc',
        'native/disk/ring.cc',
        'native/wire/digest.cc',
        'native/wire/digest_avx2.cc'
      ],
      'include_dirs': ['native'],
      'defines': ['_GNU_SOURCE'],
      'cflags!': ['-O3'],
      'cflags': ['-O2', '-Wall', '-Wextra', '-Werror', '-fvisibility=hidden'],
      'cflags_cc!': ['-std=gnu++17', '-std=gnu++14'],
      'cflags_cc': ['-std=gnu++20', '-fvisibility-inlines-hidden'],
      'conditions': [
        ['sanitize!=""', {
          'cflags': ['-fsanitize=<(sanitize)', '-fno-omit-frame-pointer', '-g'],
          'ldflags': ['-fsanitize=<(sanitize)']
        }]
      ]
    }
  ]
}
