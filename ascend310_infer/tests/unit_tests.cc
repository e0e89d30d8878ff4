// Unit tests of all that needs no model; what is compared with Python is in
// tests/deployment/test_export.py.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <opencv2/imgcodecs.hpp>

#include "error.h"
#include "files.h"
#include "image.h"
#include "metadata.h"
#include "pipeline.h"
#include "preprocess.h"
#include "report.h"

namespace spnas {
namespace {

namespace fs = std::filesystem;

constexpr char kDescription[] = R"({
  "format": "spnas-export", "version": 1,
  "model": {"file": "net.mindir", "format": "MINDIR", "mindir_version": 1, "sha256": "00"},
  "input": {"shape": [2, 3, 4, 6], "layout": "NCHW", "type": "float32"},
  "preprocessing": {"height": 4, "width": 6, "resize": 8, "mean": [1, 2.5, 3], "std": [1, 2, 4],
                    "interpolation": "bilinear", "color_order": "RGB", "max_pixels": 10000},
  "classes": ["cat", "dog"]})";

class TemporaryFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "spnas-XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

std::string Replaced(std::string text, const std::string &from, const std::string &to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string ErrorOf(const std::string &description) {
  try {
    ParseMetadata(description, "net.json");
  } catch (const UserError &error) {
    return error.what();
  }
  return "";
}

template <typename Function>
std::string ImageErrorOf(const Function &function) {
  try {
    function();
  } catch (const ImageError &error) {
    return error.what();
  }
  return "";
}

cv::Mat Gradient(int rows, int cols) {
  cv::Mat image(rows, cols, CV_8UC3);
  for (int y = 0; y < rows; ++y) {
    for (int x = 0; x < cols; ++x) {
      image.at<cv::Vec3b>(y, x) =
          cv::Vec3b(static_cast<uint8_t>(y * 255 / rows), static_cast<uint8_t>(x * 255 / cols), 90);
    }
  }
  return image;
}

std::string Encoded(const cv::Mat &bgr, const std::string &suffix) {
  std::vector<uint8_t> bytes;
  cv::imencode(suffix, bgr, bytes);
  return {bytes.begin(), bytes.end()};
}

TEST(Metadata, IsRead) {
  const Metadata metadata = ParseMetadata(kDescription, "net.json");
  EXPECT_EQ(metadata.batch_size, 2);
  EXPECT_EQ(metadata.preprocessing.width, 6);
  EXPECT_EQ(metadata.preprocessing.TensorSize(), 72);
  EXPECT_FLOAT_EQ(metadata.preprocessing.mean[1], 2.5F);
  EXPECT_EQ(metadata.classes, (std::vector<std::string>{"cat", "dog"}));
  EXPECT_EQ(metadata.mindir_version, 1);
  const std::string onnx = Replaced(kDescription, "\"MINDIR\", \"mindir_version\": 1",
                                    "\"ONNX\", \"mindir_version\": null");
  EXPECT_EQ(ParseMetadata(onnx, "net.json").format, "ONNX");
}

TEST(Metadata, ErrorsNameFileKeyAndWhatIsRight) {
  EXPECT_EQ(ErrorOf("{"), "net.json: not readable as JSON; export.py writes it beside the model");
  EXPECT_EQ(ErrorOf("[]"), "net.json: key 'format' is missing");
  const std::string deep(2'000'000, '[');
  EXPECT_EQ(ErrorOf("{\"format\":" + deep + "}"),
            "net.json: nested too deeply; export.py writes it beside the model");
  EXPECT_EQ(ErrorOf(Replaced(kDescription, "\"version\": 1", "\"version\": 2")),
            "net.json: 'version' is 2, should be a whole number from 1 to 1");
  EXPECT_EQ(ErrorOf(Replaced(kDescription, "\"height\": 4", "\"height\": 18446744073709551615")),
            "net.json: 'preprocessing.height' is 18446744073709551615, should be a whole number "
            "from 1 to 16384");
  EXPECT_EQ(ErrorOf(Replaced(kDescription, "[1, 2, 4]", "[1, 0, 4]")),
            "net.json: 'preprocessing.std' is [1,0,4], should be three positive numbers");
  EXPECT_EQ(ErrorOf(Replaced(kDescription, "[2, 3, 4, 6]", "[2, 3, 6, 4]")),
            "net.json: 'input.shape[2]' is 6, should be a whole number from 4 to 4");
  EXPECT_EQ(ErrorOf(Replaced(kDescription, "\"MINDIR\"", "\"AIR\"")),
            "net.json: 'model.format' is \"AIR\", should be \"MINDIR\" or \"ONNX\"");
  EXPECT_EQ(ErrorOf(Replaced(kDescription, "[\"cat\", \"dog\"]", "[]")),
            "net.json: 'classes' is empty");
  EXPECT_EQ(ErrorOf(Replaced(kDescription, "\"dog\"", "7")),
            "net.json: 'classes[1]' is 7, should be a text");
}

TEST_F(TemporaryFolder, MetadataBelongsToItsModel) {
  WriteFile(folder_ / "net.mindir", "abc");
  WriteFile(folder_ / "net.json", kDescription);
  EXPECT_THROW(ReadMetadata(folder_ / "net.mindir"), UserError);
  WriteFile(folder_ / "net.json",  // of "abc", FIPS 180-4
            Replaced(kDescription, "\"00\"",
                     "\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\""));
  EXPECT_EQ(ReadMetadata(folder_ / "net.mindir").classes.size(), 2U);
}

TEST_F(TemporaryFolder, FilesAreListedInOrderWithoutHiddenOnes) {
  fs::create_directories(folder_ / "b" / "deeper");
  for (const char *name :
       {"b/2.jpg", "b/10.jpg", "a.png", ".hidden", "b/.hidden", "b/deeper/no.jpg"}) {
    WriteFile(folder_ / name, "x");
  }
  EXPECT_EQ(ListFiles(folder_), (std::vector<std::string>{"a.png", "b/10.jpg", "b/2.jpg"}));
  EXPECT_THROW(ListFiles(folder_ / "missing"), UserError);
  EXPECT_THROW(ListFiles(folder_ / "b" / "deeper" / "no.jpg"), UserError);
}

TEST(Image, JpegPngAndBmpDecodeToRgb) {
  const cv::Mat blue(9, 7, CV_8UC3, cv::Scalar(250, 20, 10));
  for (const char *suffix : {".jpg", ".png", ".bmp"}) {
    const cv::Mat rgb = DecodeImage(Encoded(blue, suffix), 1000);
    ASSERT_EQ(rgb.size(), cv::Size(7, 9)) << suffix;
    const auto pixel = rgb.at<cv::Vec3b>(4, 3);
    EXPECT_NEAR(pixel[0], 10, 3) << suffix;
    EXPECT_NEAR(pixel[2], 250, 3) << suffix;
  }
  cv::Mat gray(5, 5, CV_8UC1, cv::Scalar(77));
  EXPECT_EQ(DecodeImage(Encoded(gray, ".jpg"), 1000).at<cv::Vec3b>(2, 2), cv::Vec3b(77, 77, 77));
}

TEST(Image, WhatIsNoImageIsNamed) {
  EXPECT_EQ(ImageErrorOf([] { DecodeImage("", 1000); }), "empty");
  EXPECT_EQ(ImageErrorOf([] { DecodeImage("GIF89a", 1000); }), "neither JPEG, PNG nor BMP");
  for (const char *suffix : {".jpg", ".png", ".bmp"}) {
    const std::string whole = Encoded(Gradient(40, 30), suffix);
    EXPECT_EQ(ImageErrorOf([&] { DecodeImage(whole, 1199); }), "30x40 pixels, more than 1199")
        << suffix;
    EXPECT_EQ(ImageErrorOf([&] { DecodeImage(whole, 1200); }), "") << suffix;
    EXPECT_NE(ImageErrorOf([&] { DecodeImage(whole.substr(0, 20), 1200); }), "") << suffix;
  }
  const std::string jpeg = Encoded(Gradient(40, 30), ".jpg");
  for (size_t size = 2; size + 2 < jpeg.size();
       ++size) {  // nowhere may a cut pass for a whole image
    EXPECT_NE(ImageErrorOf([&] { DecodeImage(jpeg.substr(0, size), 1200); }), "") << size;
  }
}

TEST(Image, StrayBytesPassInFrontOfTheEndOnly) {
  const std::string whole = Encoded(Gradient(40, 30), ".jpg");
  const std::string end = whole.substr(whole.size() - 2),
                    pixels = whole.substr(0, whole.size() - 2);
  EXPECT_EQ(ImageErrorOf([&] { DecodeImage(pixels + "\x11\x22" + end, 1200); }), "");
  const size_t scan = whole.find("\xff\xda");  // what is lost behind stray bytes is not overlooked
  std::string damaged = whole.substr(0, scan) + "\x11\x22" + whole.substr(scan, 40) + end;
  EXPECT_NE(ImageErrorOf([&] { DecodeImage(damaged, 1200); }), "");
  // A progressive image that lacks the table of a scan: no row of it is read.
  std::vector<uint8_t> bytes;
  cv::imencode(".jpg", Gradient(40, 30), bytes, {cv::IMWRITE_JPEG_PROGRESSIVE, 1});
  damaged.assign(bytes.begin(), bytes.end());
  ASSERT_EQ(ImageErrorOf([&] { DecodeImage(damaged, 1200); }), "");
  damaged[damaged.find("\xff\xc4", damaged.find("\xff\xda"))] = 0;
  EXPECT_NE(ImageErrorOf([&] { DecodeImage(damaged, 1200); }), "");
}

TEST(Image, BmpOfOs2IsRead) {
  std::string bmp = {'B', 'M', 42, 0, 0, 0, 0, 0, 0, 0, 26, 0, 0, 0};
  bmp += {12, 0, 0, 0, 2, 0, 2, 0, 1, 0, 24, 0};
  for (int row = 0; row < 2; ++row) {  // two pixels and two bytes that fill the row
    bmp += std::string("\x01\x02\x03\x01\x02\x03") + std::string(2, '\0');
  }
  const cv::Mat image = DecodeImage(bmp, 4);
  EXPECT_EQ(image.size(), cv::Size(2, 2));
  EXPECT_EQ(image.at<cv::Vec3b>(1, 1), cv::Vec3b(3, 2, 1));
  EXPECT_EQ(ImageErrorOf([&] { DecodeImage(bmp, 3); }), "2x2 pixels, more than 3");
}

Preprocessing Values(int height, int width, int resize) {
  Preprocessing values;
  values.height = height;
  values.width = width;
  values.resize = resize;
  values.mean = {10, 20, 30};
  values.std = {1, 2, 4};
  values.max_pixels = 10000;
  return values;
}

TEST(Preprocess, NormalisesIntoPlanes) {
  const cv::Mat image(4, 4, CV_8UC3, cv::Scalar(11, 24, 38));
  std::vector<float> tensor(3 * 2 * 2);
  Preprocessor(Values(2, 2, 4))(image, tensor.data());
  EXPECT_EQ(tensor, (std::vector<float>{1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2}));
}

TEST(Preprocess, CropsTheMiddleAndPadsSmallImagesMoreAboveAndLeft) {
  cv::Mat image = cv::Mat::zeros(3, 3, CV_8UC3);
  image.at<cv::Vec3b>(1, 1) = cv::Vec3b(110, 0, 0);
  std::vector<float> tensor(3);
  Preprocessor(Values(1, 1, 3))(image, tensor.data());
  EXPECT_EQ(tensor[0], 100);
  tensor.assign(3 * 6 * 4, -1);
  Preprocessor(Values(6, 4, 3))(image, tensor.data());
  EXPECT_EQ(tensor[3 * 4 + 2], 100);  // 2 rows above, 1 below; 1 column on the left
  EXPECT_EQ(tensor[0], -10);
}

TEST(Preprocess, RefusesWhatWouldBeHugeAfterResizing) {
  std::vector<float> tensor(3 * 4 * 4);
  const Preprocessor preprocess(Values(4, 4, 64));
  EXPECT_NE(ImageErrorOf([&] { preprocess(cv::Mat::zeros(1, 5000, CV_8UC3), tensor.data()); }), "");
  EXPECT_NE(ImageErrorOf([&] { preprocess(cv::Mat::zeros(5000, 1, CV_8UC3), tensor.data()); }), "");
  EXPECT_EQ(ImageErrorOf([&] { preprocess(cv::Mat::zeros(100, 200, CV_8UC3), tensor.data()); }),
            "");
}

// Runs a pipeline whose logits are (index, -index); every seventh file fails.
std::vector<Answer> RunNumbers(size_t count, size_t batch_size, size_t workers) {
  PipelineOptions options;
  options.batch_size = batch_size;
  options.tensor_size = 1;
  options.classes = 2;
  const Prepare prepare = [](size_t index, float *tensor) {
    if (index % 7 == 3) {
      throw ImageError("seventh");
    }
    *tensor = static_cast<float>(index);
  };
  const Infer infer = [batch_size](const float *images, float *logits) {
    for (size_t i = 0; i < batch_size; ++i) {
      logits[2 * i] = images[i];
      logits[2 * i + 1] = -images[i];
    }
    return 1.0;
  };
  std::vector<Answer> answers;
  RunPipeline(count, options, prepare, std::vector<Infer>(workers, infer),
              [&](const Answer &answer) { answers.push_back(answer); });
  return answers;
}

TEST(Pipeline, AnswersEveryFileOnceAndInOrder) {
  for (const size_t count : {1, 2, 4, 64, 301}) {
    for (const size_t batch_size : {1, 3, 8}) {
      for (const size_t workers : {1, 2, 5}) {
        const std::vector<Answer> answers = RunNumbers(count, batch_size, workers);
        ASSERT_EQ(answers.size(), count);
        for (size_t i = 0; i < count; ++i) {
          ASSERT_EQ(answers[i].index, i);
          if (i % 7 == 3) {
            ASSERT_EQ(answers[i].error, "seventh");
            ASSERT_TRUE(answers[i].logits.empty());
          } else {
            ASSERT_EQ(answers[i].logits,
                      (std::vector<float>{static_cast<float>(i), -static_cast<float>(i)}));
          }
        }
      }
    }
  }
}

TEST(Pipeline, FaultsOfModelAndDeliveryEndIt) {
  PipelineOptions options;
  options.tensor_size = options.classes = 1;
  const Prepare prepare = [](size_t, float *) {};
  const Infer good = [](const float *, float *) { return 1.0; };
  // Otherwise the other worker might answer all files before the bad one has begun.
  std::promise<void> begun;
  const Infer waiting = [has_begun = begun.get_future().share()](const float *, float *) {
    has_begun.wait();
    return 1.0;
  };
  const Infer bad = [&begun](const float *, float *) -> double {
    begun.set_value();
    throw Fault("model");
  };
  const Deliver accept = [](const Answer &) {};
  const Deliver refuse = [](const Answer &) { throw Fault("disk"); };
  EXPECT_THROW(RunPipeline(100, options, prepare, {waiting, bad}, accept), Fault);
  EXPECT_THROW(RunPipeline(100, options, prepare, {good, good}, refuse), Fault);
}

TEST(Report, PercentilesAndTop) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) {
    values.push_back(i);
  }
  const Latency latency = Summarise(values);
  EXPECT_EQ(latency.count, 100U);
  EXPECT_EQ(latency.mean, 50.5);
  EXPECT_EQ(latency.p50, 50);
  EXPECT_EQ(latency.p90, 90);
  EXPECT_EQ(latency.p99, 99);
  EXPECT_EQ(Summarise({}).mean, 0);
  EXPECT_EQ(Largest({1, 5, 2, 5}, 3), (std::vector<size_t>{1, 3, 2}));
  EXPECT_EQ(Largest({1}, 5), (std::vector<size_t>{0}));
}

TEST_F(TemporaryFolder, ReportWritesLogitsAnswersAndTimes) {
  fs::create_directories(folder_ / "result_Files");
  WriteFile(folder_ / "result_Files/top5.jsonl", "earlier");
  WriteFile(folder_ / "result_Files/old_0.bin", "earlier");
  Report report(folder_, {"cat", "dog"});
  Answer answer;
  answer.logits = {0, 1};
  answer.inference_ms = 2;
  answer.latency_ms = 3;
  report.Add("pets/\"odd\" \xff.jpg", answer);
  answer.logits.clear();
  answer.error = "broken";
  answer.inference_ms = 0;
  report.Add("pets/b.jpg", answer);
  answer.error.clear();
  answer.logits = {std::nanf(""), 1};
  report.Add("pets/c.jpg", answer);
  answer.logits = {0, 1};
  const std::string longest = "pets/" + std::string(249, 'x');
  report.Add(longest, answer);
  report.Add(longest + "x", answer);
  EXPECT_EQ(ReadFile(folder_ / "result_Files/top5.jsonl"), "earlier");
  report.Finish(0.5, {7, 9});
  EXPECT_TRUE(fs::exists(folder_ / "result_Files" / (longest + "_0.bin")));
  EXPECT_FALSE(fs::exists(folder_ / "result_Files/old_0.bin"));
  EXPECT_EQ(ReadFile(folder_ / "result_Files/pets/\"odd\" \xff.jpg_0.bin"),
            std::string("\0\0\0\0\0\0\x80\x3f", 8));
  const std::string lines = ReadFile(folder_ / "result_Files/top5.jsonl");
  EXPECT_NE(lines.find(R"("top5":[{"index":1,"class":"dog","probability":0.73105)"),
            std::string::npos)
      << lines;
  EXPECT_NE(lines.find("\n{\"file\":\"pets/b.jpg\",\"error\":\"broken\"}\n"), std::string::npos)
      << lines;
  EXPECT_EQ(report.failed().size(), 3U);
  const std::string times = ReadFile(folder_ / "time_Result/test_perform_static.txt");
  EXPECT_EQ(times.find("NN inference cost average time: 2.0000 ms of infer_count 1\n"), 0U)
      << times;
  EXPECT_NE(times.find("warm-up, not counted above: average 8.0000 ms of infer_count 2"),
            std::string::npos)
      << times;
}

TEST_F(TemporaryFolder, EarlierResultsStayWhereNothingIsAnswered) {
  fs::create_directories(folder_ / "result_Files");
  WriteFile(folder_ / "result_Files/top5.jsonl", "earlier");
  {
    Report report(folder_, {"cat", "dog"});
    Answer answer;
    answer.error = "broken";
    report.Add("pets/a.jpg", answer);
    report.Finish(0.5, {});
    EXPECT_EQ(report.failed().size(), 1U);
  }
  EXPECT_EQ(ReadFile(folder_ / "result_Files/top5.jsonl"), "earlier");
  for (const auto &entry : fs::directory_iterator(folder_)) {
    EXPECT_EQ(entry.path().filename(), "result_Files");
  }
}

}  // namespace
}  // namespace spnas
